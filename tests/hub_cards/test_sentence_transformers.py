"""sentence-transformers loads what `dmae push` lays out: cosines are CLIP's scores, of other models coarse ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from dmae.hub_cards.staging import add_sentence_module

pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.slow
TEXTS = ["a red square moves left", "a green circle moves up", "the sky is blue"]
CODE = """
import json, logging
from sentence_transformers import SentenceTransformer
model = SentenceTransformer({folder!r}, trust_remote_code=True, device="cpu")
texts, videos = {texts!r}, {videos!r}
mine, shown = model.encode(texts), model.encode(videos)
assert mine.shape == (3, 64) and shown.shape == (2, 64)
if {page!r}:
    exec({page!r})
print(json.dumps([model.similarity(mine, shown).tolist(), model[0].score(texts, videos, batch_size=1).tolist()]))
"""


def page(folder, desk, clips) -> tuple[str, str]:
    """The snippet of docs/how_to/sentence_transformers.md for this folder, and what the page says it prints."""
    for name, clip in zip(("first.mp4", "second.mp4"), clips.values()):
        shutil.copy(clip, desk / name)
    text = (Path(__file__).resolve().parents[2] / "docs/how_to/sentence_transformers.md").read_text(encoding="utf-8")
    snippet = text.split("```python\n")[1].split("```")[0].replace("your-name/your-model", str(folder))
    return snippet.replace("model = ", "again = ").replace("model.", "again.").replace("model[0]", "again[0]"), (
        text.split("```text\n")[1].split("```")[0]
    )


@pytest.mark.parametrize("interaction", ["mean", "wti"])
def test_text_and_video_vectors_and_exact_scores(model_folder, clips, isolated, tmp_path, interaction):
    from dmae import DMAEForTextVideoRetrieval, DMAEProcessor

    folder = shutil.copytree(model_folder, tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "interaction": interaction}))
    add_sentence_module(folder)
    model = DMAEForTextVideoRetrieval.from_pretrained(folder).eval()
    videos = [str(clips["red"]), str(clips["green"])]
    batch = DMAEProcessor.from_pretrained(folder)(text=TEXTS, videos=videos, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch, return_loss=False).logits_per_text / model.logit_scale.exp()

    snippet, shown = page(folder, tmp_path, clips) if interaction == "wti" else ("", "")
    code = CODE.format(folder=str(folder), texts=TEXTS, videos=videos, page=snippet)
    nothing_else = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    printed = isolated(code, tmp_path, nothing_else)
    assert shown in printed
    cosines, exact = (torch.tensor(found) for found in json.loads(printed.strip().splitlines()[-1]))
    torch.testing.assert_close(exact, expected, atol=1e-5, rtol=0)
    gap = (cosines - expected).abs().max()
    assert gap < 1e-5 if interaction == "mean" else gap > 1e-3
