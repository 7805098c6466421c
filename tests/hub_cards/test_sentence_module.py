"""The module that sentence-transformers loads, in this process; the library itself runs in the slow tests."""

import importlib.util
import logging
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from dmae.inference.embedding import encode_texts
from dmae.inference.loading import load_model_and_processor

FILE = Path(__file__).resolve().parents[2] / "hub_cards" / "sentence_dmae.py"
TEXTS = ["a red square moves left", "the sky is blue", "two dogs"]


@pytest.fixture(scope="session")
def code():
    """The file with the two names that it takes from sentence-transformers."""

    class InputModule(torch.nn.Module):
        def _prepend_prompt(self, rows, prompt):
            return [prompt + row for row in rows]

    def modality(rows, supported_modalities):
        assert supported_modalities == ["text", "video"]
        return "video" if str(rows[0]).endswith(".mp4") else "text"

    root = "sentence_transformers"
    names = (root, f"{root}.base", f"{root}.base.modality", f"{root}.base.modules")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, ModuleType(name))
        sys.modules[names[2]].infer_batch_modality = modality
        sys.modules[names[3]].InputModule = InputModule
        specification = importlib.util.spec_from_file_location("sentence_dmae", FILE)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def loaded(model_folder):
    return load_model_and_processor(model_folder, device="cpu")


@pytest.fixture(scope="session")
def module(code, loaded):
    return code.TextVideoModule(*loaded)


def test_single_vectors_are_announced_as_the_coarse_ones_they_are(code, loaded, caplog):
    model, processor = loaded
    with caplog.at_level(logging.WARNING):
        module = code.TextVideoModule(model, processor)
    (said,) = caplog.messages
    assert said.startswith("single vectors of a DMAE model rank worse than its own score (interaction='wti'), which ")
    assert module.tokenizer is processor.tokenizer and module.modalities == ["text", "video"]
    assert module.get_embedding_dimension() == model.config.projection_dim and module.model is model
    caplog.clear()
    model.config.interaction = "mean"
    try:
        code.TextVideoModule(model, processor)
    finally:
        model.config.interaction = "wti"
    assert caplog.messages == []


def test_vectors_are_the_sentence_s_and_the_mean_frame_s(module, loaded, clips, make_clip, tmp_path):
    """A clip of one frame has frames that are none: they count for nothing."""
    model, processor = loaded
    short = make_clip(tmp_path / "short.mp4", 5, seconds=0.125)
    with torch.inference_mode():
        found = module(module.preprocess(TEXTS))
        prompted = module(module.preprocess(TEXTS, prompt="a red "))["sentence_embedding"]
        seen = module(module.preprocess(iter([str(clips["red"]), str(short)])))
        video = model.get_video_features(**processor(videos=[str(clips["red"]), str(short)], return_tensors="pt"))
    expected = torch.nn.functional.normalize(encode_texts(model, processor, TEXTS).sentence_embeds, dim=-1)
    torch.testing.assert_close(found["sentence_embedding"], expected)
    assert set(found) >= {"input_ids", "attention_mask", "sentence_embedding"}
    again = encode_texts(model, processor, [f"a red {text}" for text in TEXTS]).sentence_embeds
    torch.testing.assert_close(prompted, torch.nn.functional.normalize(again, dim=-1))
    assert video.video_mask[1].sum() < video.video_mask[0].sum()
    means = [frames[mask].mean(0) for frames, mask in zip(video.video_embeds, video.video_mask)]
    torch.testing.assert_close(seen["sentence_embedding"], torch.stack([mean / mean.norm() for mean in means]))
    assert torch.equal(seen["video_mask"], video.video_mask)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_exact_scores_are_the_model_s_however_they_are_divided(module, loaded, clips, batch_size):
    model, processor = loaded
    videos = [str(path) for path in clips.values()]
    with torch.no_grad():
        expected = model(**processor(text=TEXTS, videos=videos, return_tensors="pt")).logits_per_text
    losses = []
    hook = model.register_forward_hook(lambda *words: losses.append(words[-1].loss))
    found = module.score(TEXTS, videos, batch_size=batch_size)
    hook.remove()
    assert losses == [None] * -(-3 // batch_size), "as many clips as sentences are no pairs"
    torch.testing.assert_close(found, expected / model.logit_scale.detach().exp(), atol=1e-5, rtol=0)


def test_both_halves_are_saved_and_loaded_as_they_were_asked_for(code, module, loaded, monkeypatch, tmp_path):
    module.save(str(tmp_path))
    assert {"config.json", "model.safetensors", "processor_config.json"} <= {path.name for path in tmp_path.iterdir()}
    asked = []

    def from_pretrained(half, name, **options):
        asked.append((name, options))
        return half

    for name, half in (("AutoModel", loaded[0]), ("AutoProcessor", loaded[1])):
        kind = SimpleNamespace(from_pretrained=partial(from_pretrained, half))
        monkeypatch.setattr(code, name, kind)
    found = code.TextVideoModule.load("a/b", "sub", token="t", revision="r", trust_remote_code=True, backend="torch")
    assert (found.model, found.processor) == loaded and not found.model.training
    assert asked == [("a/b", {"token": "t", "revision": "r", "trust_remote_code": True})] * 2
    code.TextVideoModule.load("a/b", cache_folder="c", local_files_only=True)
    assert asked[2:] == [("a/b", {"cache_dir": "c", "local_files_only": True, "trust_remote_code": False})] * 2
