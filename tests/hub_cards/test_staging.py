"""What lies in the folder that is sent: a model with all that runs it and tells of it; a Space with page and clips."""

import json
import shutil

import numpy as np
import pytest

from dmae.data.moving_digits.captions import write_captions
from dmae.data.moving_digits.scenes import PRESETS, random_scene
from dmae.hub_cards import staging
from dmae.hub_cards.cards import Statement
from dmae.hub_cards.pipeline_dmae import custom_pipelines

OURS = ("handler.py", "pipeline_dmae.py", "requirements.txt", "sentence_dmae.py")


def test_a_model_s_folder_has_its_code_its_card_and_what_runs_it(run_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    (run / "results.json").write_text(json.dumps({"metrics": {"x": 1}, "data": {"split": "test"}, "model": {}}))
    folder, shown = tmp_path / "out", []
    folder.mkdir()
    files = staging.stage_model(run, folder, "user/tiny", Statement("mit"), (), shown.append)
    assert files == {name: folder / name for name in sorted(files)}
    assert set(files) >= {
        "config.json", "model.safetensors", "modeling_dmae.py", "processing_dmae.py", "processor_config.json",
        "tokenizer.json", "README.md", "pictures/curves.png", "modules.json", "config_sentence_transformers.json",
        *OURS,
    }  # fmt: skip
    for name in OURS:
        assert files[name].read_bytes() == (staging.FOLDER / name).read_bytes()
    settings = json.loads(files["config.json"].read_text())
    assert settings["custom_pipelines"] == custom_pipelines() and settings["auto_map"]
    card = files["README.md"].read_text()
    assert "license: mit" in card and "user/tiny" in card and "](pictures/curves.png)" in card
    (said,) = shown
    assert said.startswith(f"{run.resolve() / 'results.json'}: left out, without a record of its model's weights")
    with pytest.raises(ValueError, match="left out, without a record"):
        staging.stage_model(run, folder, "user/tiny", results=(run / "results.json",), show=shown.append)


def test_settings_for_sentence_transformers_are_written_for_people(tmp_path):
    staging.add_sentence_module(tmp_path)
    assert (tmp_path / "config_sentence_transformers.json").read_text() == (
        '{\n  "model_type": "SentenceTransformer",\n  "similarity_fn_name": "cosine"\n}\n'
    )
    assert (tmp_path / "modules.json").read_text().startswith('[\n  {\n    "idx": 0,\n')
    assert (tmp_path / "modules.json").read_text().endswith("}\n]\n")


def test_a_space_names_its_model_and_has_a_sentence_for_each_clip(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(staging, "render_clip", lambda clip: drawn.append(clip) or clip[0].touch())
    files = staging.stage_space(tmp_path / "space", "user/tiny")
    clips = [f"examples/clip_{number}.mp4" for number in (1, 2, 3, 4)]
    assert list(files) == ["README.md", "app.py", "examples/captions.txt", *clips, "requirements.txt"]
    assert [clip[0] for clip in drawn] == [files[name] for name in clips]
    assert [clip[2:] for clip in drawn] == [("test", PRESETS["demo"], [3, number]) for number in range(4)]
    rng, expected = np.random.default_rng(3), []
    for _, scene, *_ in drawn:
        assert scene == random_scene(PRESETS["demo"], rng)
        expected += write_captions(scene, rng, 1, filler=0.0)
    assert files["examples/captions.txt"].read_text() == "\n".join(expected) + "\n" and len(set(expected)) == 4
    texts = {name: files[name].read_text() for name in ("app.py", "README.md", "requirements.txt")}
    assert 'os.environ.get("DMAE_MODEL", "user/tiny")' in texts["app.py"] and "  - user/tiny\n" in texts["README.md"]
    assert not any("your-name" in text for text in texts.values())
