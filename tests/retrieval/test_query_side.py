"""Words are embedded by half of the model, exactly as by all of it, and only where its files are known."""

import copy
import shutil

import pytest
import torch
from safetensors.torch import save_file

from dmae.inference import identity
from dmae.inference.embedding import encode_texts
from dmae.inference.loading import load_model_and_processor
from dmae.inference.query_side import _text_half, load_query_side
from dmae.retrieval.index import VideoIndex

TEXTS = ["a red square moves left", "the sky is blue"]


@pytest.fixture(autouse=True)
def own_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "YOUNG_SECONDS", 0.0)


@pytest.fixture
def clip_folder(tokenizer, tmp_path):
    """A CLIP checkpoint as they come, of tiny size."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=32, eos_token_id=1, **small)
    vision = CLIPVisionConfig(image_size=32, patch_size=16, **small)
    torch.manual_seed(0)
    configuration = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    CLIPModel(configuration).save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.mark.parametrize("kind", ["dmae", "clip"])
def test_half_a_model_embeds_words_as_the_whole_one(kind, model_folder, clip_folder):
    folder = str(model_folder if kind == "dmae" else clip_folder)
    stamp = identity.weights_stamp(folder)
    model, processor = load_model_and_processor(folder, device="cpu")
    described = identity.describe_model(model, processor)
    assert load_query_side(described, model.config, "cpu") is None  # nobody has hashed these files
    identity.remember_weights(stamp, described["weights"])
    manifest_s = copy.deepcopy(model.config)
    manifest_s.name_or_path = ""  # an index knows the model's name, its configuration does not
    half, its_processor = load_query_side(described, manifest_s, "cpu")
    assert not hasattr(half, "vision_model") and half.config.name_or_path == folder
    whole, same = (encode_texts(*both, TEXTS) for both in [(model, processor), (half, its_processor)])
    assert torch.equal(whole.sentence_embeds, same.sentence_embeds)
    assert torch.equal(whole.word_embeds, same.word_embeds)
    narrow, _ = load_query_side(described, manifest_s, "cpu", "bfloat16")
    assert {tensor.dtype for tensor in narrow.parameters()} == {torch.bfloat16}
    if kind == "dmae":  # by the mean of frames, words have no weight in the score, and nothing is tagged
        assert torch.equal(whole.word_weights, same.word_weights)


@pytest.mark.parametrize("change", ["none", "absent", "smaller", "further"])
def test_a_file_of_another_model_gives_no_half(model, tmp_path, change):
    """What is in it besides is nobody's matter here."""
    name, file = "text_projection.weight", tmp_path / "model.safetensors"
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    if change == "absent":
        del weights[name]
    if change == "smaller":
        weights[name] = weights[name][1:].clone()
    if change == "further":
        weights["more"] = torch.ones(2)
    save_file(weights, file)
    half = _text_half(copy.deepcopy(model.config), file)
    assert (half is None) == (change in ("absent", "smaller"))
    assert half is None or torch.equal(half.text_projection.weight, weights[name])


def test_the_second_search_reads_half_a_model_and_finds_the_same(encoded, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    loaded = load_model_and_processor(str(folder), device="cpu")
    VideoIndex.build(encoded, *loaded).save(tmp_path / "index")
    first, second = VideoIndex.open(tmp_path / "index", device="cpu"), VideoIndex.open(tmp_path / "index", device="cpu")
    expected = first.search(TEXTS)
    assert first._model is not None
    assert second.search(TEXTS) == expected
    assert second._model is None and second._query_side is not None


def test_other_weights_in_the_same_place_are_refused(encoded, model_folder, make_model, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    index = VideoIndex.build(encoded, *load_model_and_processor(str(folder), device="cpu")).save(tmp_path / "index")
    VideoIndex.open(index.path, device="cpu").search(TEXTS)
    make_model(seed=1, interaction="wti").save_pretrained(folder)
    with pytest.raises(ValueError, match="was built with"):
        VideoIndex.open(index.path, device="cpu").search(TEXTS)


def test_a_file_changed_just_now_is_not_trusted(model_folder, monkeypatch):
    monkeypatch.setattr(identity, "YOUNG_SECONDS", 1e9)
    assert identity.weights_stamp(str(model_folder)) is None


def test_a_damaged_memory_is_no_memory(model_folder):
    stamp = identity.weights_stamp(str(model_folder))
    identity.remember_weights(stamp, "abc")
    assert identity.known_weights(stamp) == "abc"
    identity._memory_file().write_text("{")
    assert identity.known_weights(stamp) is None
