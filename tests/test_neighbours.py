"""docs/how_to/neighbours.md from top to end with a tiny model: each snippet prints what the page says it printed."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/how_to/neighbours.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (.*?)\n.*?^```python\n(.*?)^```\n+^```text\n(.*?)^```", PAGE, re.M | re.S)
NEEDS = {"datasets": "datasets", "ONNX": "onnxruntime", "transformers' exporter": "transformers.exporters"}


@pytest.mark.slow
@pytest.mark.parametrize(("neighbour", "code", "printed"), SECTIONS, ids=[name for name, _, _ in SECTIONS])
def test_the_snippet_prints_what_the_page_says(
    neighbour, code, printed, make_model, processor, clips, tmp_path, monkeypatch
):
    pytest.importorskip(NEEDS[neighbour])
    model = make_model(max_frames=processor.feature_extractor.num_frames, interaction="wti")
    folder = tmp_path / "my_clips"
    folder.mkdir()
    lines = []
    for path, text in zip(sorted(clips.iterdir()), ("a red square", "a green circle", "the sky is blue")):
        shutil.copy(path, folder)
        lines.append(json.dumps({"file_name": path.name, "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(code, {"model": model, "processor": processor})
    assert shown.getvalue().splitlines()[-len(printed.splitlines()) :] == printed.splitlines()
