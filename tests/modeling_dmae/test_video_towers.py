"""Towers that see a window at once give what transformers' own models give, on tiny random checkpoints.

PE-Video's frames go through a tower of timm, which needs torchvision: with both in reach (the last test brings them to
a folder) PE-Core's tower is used, and saved and loaded; else one of ViT's kind, in memory alone.
"""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ModernBertConfig,
    PeVideoConfig,
    PeVideoEncoderConfig,
    PeVideoModel,
    PreTrainedTokenizerFast,
    TimmWrapperConfig,
    VideoPrismClipModel,
    VideoPrismConfig,
    VideoPrismTokenizer,
    ViTConfig,
)

from dmae import DMAEConfig, DMAEForTextVideoRetrieval
from dmae.hub_cards.handler import EndpointHandler
from dmae.inference.embedding import encode_videos
from dmae.inference.export import TextTower, VideoTower, example_inputs, exported_program
from dmae.inference.loading import load_model_and_processor
from dmae.modeling_dmae.similarity_dmae import similarity
from dmae.modeling_dmae.video_towers_dmae import evenly_repeated
from dmae.processing.choice_dmae import choose_frames
from dmae.retrieval.index import VideoIndex
from dmae.visuals.matches import word_frame_match

ROOT = Path(__file__).resolve().parents[2]
WITH_TIMM = importlib.util.find_spec("timm") is not None
TOWER = dict(hidden_size=32, intermediate_size=48, num_attention_heads=2)
COUNTS = (4, 3, 1)  # real frames of the windows below; the towers take 4


def videoprism_model():
    vision = dict(image_size=16, tubelet_size=[1, 8, 8], num_frames=4, num_spatial_layers=2, num_temporal_layers=1)
    text = dict(TOWER, vocab_size=60, num_hidden_layers=2, max_position_embeddings=16)
    config = VideoPrismConfig(text_config=text, vision_config=dict(TOWER, **vision, num_auxiliary_layers=1))
    return VideoPrismClipModel(config)


def pe_video_model():
    pictures = ViTConfig(**TOWER, num_hidden_layers=1, image_size=16, patch_size=8, num_labels=24)
    if WITH_TIMM:  # of two classes: PeVideoConfig in transformers 5.23 forgets any other number when it is read again
        sizes = dict(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2)
        words = dict(architecture="vit_pe_core_tiny_patch16_384", do_pooling=True, global_pool="map")
        pictures = TimmWrapperConfig(**words, model_args=sizes)
    video = PeVideoEncoderConfig(**TOWER, num_hidden_layers=2, head_dim=16, vision_config=pictures)
    ids = dict(vocab_size=60, cls_token_id=57, sep_token_id=58, pad_token_id=59, bos_token_id=57, eos_token_id=58)
    text = ModernBertConfig(**TOWER, **ids, num_hidden_layers=2, max_position_embeddings=64)
    model = PeVideoModel(PeVideoConfig(text_config=text, video_config=video))
    torch.nn.init.constant_(model.text_video_logit_scale, 7.5)
    return model


MODELS = {"videoprism": videoprism_model, "pe_video": pe_video_model}


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """(family, transformers' model, ours with its weights, the checkpoint's folder or None)"""
    torch.manual_seed(0)
    source, folder = MODELS[request.param]().eval(), None
    for name, parameter in source.named_parameters():  # as they start, all texts and all windows would be one
        if "scale" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    words = {"max_words": 12} | ({} if request.param == "videoprism" else {"max_frames": 4})
    if request.param == "videoprism" or WITH_TIMM:
        folder = tmp_path_factory.mktemp(request.param)
        source.save_pretrained(folder)
        return request.param, source, DMAEForTextVideoRetrieval.from_clip(folder, **words), folder
    return request.param, source, DMAEForTextVideoRetrieval.from_dual_encoder(source, **words), folder


def texts(family: str):
    """Three texts of 9, 4 and 1 words: ids (3,12), attention mask, where the words are."""
    first, end, padding = (None, None, 0) if family == "videoprism" else (57, 58, 59)
    ids, offset = torch.full((3, 12), padding), int(first is not None)
    words = torch.zeros(3, 12, dtype=torch.bool)
    for row, count in enumerate([9, 4, 1]):
        words[row, offset : offset + count] = True
        ids[row, words[row]] = torch.randint(5, 50, (count,))
        if first is not None:
            ids[row, 0], ids[row, count + 1] = first, end
    return ids, ids != padding, words


def test_texts_and_windows_are_those_of_transformers(pair):
    family, source, model, _ = pair
    ids, attended, words = texts(family)
    frames = torch.randn(3, 4, 3, 16, 16)
    with torch.no_grad():
        expected = source(input_ids=ids, attention_mask=attended.long(), pixel_values_videos=frames)
        found = model.get_text_features(ids, attended.long())
        video = model.get_video_features(frames)
    sentences = expected.text_embeds if family == "videoprism" else expected.text_video_embeds
    for ours, theirs in ((found.sentence_embeds, sentences), (video.video_embeds[:, 0], expected.video_embeds)):
        torch.testing.assert_close(ours, theirs / theirs.norm(dim=-1, keepdim=True), rtol=0, atol=1e-5)
        assert (theirs[0] - theirs[1]).abs().max() > 1e-2, "else nothing is shown"
    assert torch.equal(found.word_mask, words)
    assert video.video_mask.shape == (3, 1) and bool(video.video_mask.all())
    if family == "pe_video":
        assert abs(float(model.logit_scale.detach().exp()) - 7.5) < 1e-4


def test_short_windows(pair):
    """PE-Video masks what is missing; VideoPrism repeats what there is, evenly. Garbage in padding changes nothing."""
    family, source, model, _ = pair
    frames, mask = torch.randn(3, 4, 3, 16, 16), torch.arange(4) < torch.tensor(COUNTS)[:, None]
    with torch.no_grad():
        found = model.get_video_features(frames, mask).video_embeds[:, 0]
        assert torch.equal(
            found, model.get_video_features(frames.masked_fill(~mask[..., None, None, None], 9), mask)[0][:, 0]
        )
        if family == "pe_video":
            expected = source.video_head(source.video_encoder(frames, mask).pooler_output)
        else:
            repeated = [[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 0, 0]]
            windows = torch.stack([frames[row, places] for row, places in enumerate(repeated)])
            expected = source.get_video_features(windows).pooler_output[:, 0]
    torch.testing.assert_close(found, expected / expected.norm(dim=-1, keepdim=True), rtol=0, atol=1e-5)


def test_repeating_is_by_the_real_frames_wherever_they_stand():
    window = torch.arange(5.0).reshape(1, 5, 1, 1, 1)
    mask = torch.tensor([[False, True, False, True, True]])
    assert evenly_repeated(window, mask, 7).flatten().tolist() == [1, 1, 1, 3, 3, 4, 4]
    assert evenly_repeated(window, torch.ones(1, 5, dtype=torch.bool), 5).flatten().tolist() == [0, 1, 2, 3, 4]


def test_saved_trained_and_scored(pair, tmp_path):
    family, _, model, folder = pair
    again = model
    if folder is not None:
        model.save_pretrained(tmp_path)
        again = DMAEForTextVideoRetrieval.from_pretrained(tmp_path)
    ids, attended, _ = texts(family)
    batch = dict(input_ids=ids, attention_mask=attended.long(), pixel_values=torch.randn(3, 4, 3, 16, 16))
    with torch.no_grad():
        output = again(**batch)
        torch.testing.assert_close(output.logits_per_text, model(**batch).logits_per_text)
    exact = similarity(
        again.get_text_features(ids, attended), again.get_video_features(batch["pixel_values"]), again.config
    )
    torch.testing.assert_close(exact * again.logit_scale.exp(), output.logits_per_text)
    trained = copy.deepcopy(again).train()
    trained(**batch).loss.backward()
    missing = [name for name, parameter in trained.named_parameters() if parameter.grad is None]
    assert not [name for name in missing if "pooler" not in name], missing


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            dict(visual_attention=True),
            "visual_attention=True would have nothing to work on; set visual_attention=False",
        ),
        (dict(temporal_layers=2), "temporal_layers=2 would"),
        (dict(partial_order=True), "partial_order=True would"),
        (dict(temporal_input="patch"), "temporal_input='patch' would"),
        (dict(interaction="wti"), "interaction='wti' would have nothing to work on; set interaction='mean'"),
        (dict(max_frames=12), "max_frames=12: a videoprism_vision_model tower takes windows of 4"),
    ],
)
def test_what_one_vector_has_no_use_for_is_refused(words, message):
    towers = videoprism_model().config
    settings = DMAEConfig.window_settings(towers.vision_config)
    with pytest.raises(ValueError, match=message):
        DMAEConfig(towers.text_config, towers.vision_config, 32, max_words=12, **{**settings, **words})


def test_single_frames_have_no_tokens(pair):
    with pytest.raises(ValueError, match="has no tokens of single frames: it sees a window at once"):
        pair[2].get_frame_tokens(torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize("total", [4, 5, 9, 40, 301])
def test_the_frames_are_those_of_transformers(total):
    """`default_sample_indices_fn` (VideoPrism) and PE-Video's own choice, at a constant rate of 25 frames a second."""
    times = np.arange(total) / 25
    assert choose_frames(times, 4, "segment_start").tolist() == [i * total // 4 for i in range(4)]
    assert choose_frames(times, 4, "uniform").tolist() == [int(i * (total - 1) / 3) for i in range(4)]


def make_tokenizer(family: str):
    vocabulary = ["a", "red", "square", "moves", "left", "the", "sky", "is", "blue"]
    if family == "videoprism":
        scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -9.0)]
        return VideoPrismTokenizer(
            scores + [(f"▁{word}", -2.0) for word in vocabulary], extra_ids=0, model_max_length=16
        )
    ids = {"[CLS]": 57, "[SEP]": 58, "[PAD]": 59, "[UNK]": 0} | {word: i for i, word in enumerate(vocabulary, 1)}
    words = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 57), ("[SEP]", 58)]
    )
    names = dict(cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]", model_max_length=64)
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


def test_a_checkpoint_by_name_with_its_processor(pair, clips):
    """Loaded zero-shot: tokenizer, frames, size and normalisation are the checkpoint's; windows become rows."""
    family, source, _, folder = pair
    if folder is None:
        pytest.skip("needs timm; test_with_the_frame_tower_of_timm has it")
    make_tokenizer(family).save_pretrained(folder)
    prepared = {"size": {"height": 16, "width": 16}, "resample": 2, "do_normalize": family == "pe_video"}
    prepared |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "num_frames": 4}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(prepared))
    model, processor = load_model_and_processor(
        folder, device="cpu", dtype="float32", max_words=12, **({} if family == "videoprism" else {"max_frames": 4})
    )
    sampler = processor.feature_extractor
    zero, one = ([0.0] * 3, [1.0] * 3) if family == "videoprism" else ([0.5] * 3, [0.5] * 3)
    assert (sampler.num_frames, sampler.size, sampler.fit, sampler.resample) == (4, 16, "stretch", "bilinear")
    assert (sampler.image_mean, sampler.image_std) == (zero, one)
    path = sorted(clips.iterdir())[0]
    batch = processor(text=["a red square", "the sky"], videos=[str(path)], return_tensors="pt")
    assert batch["word_mask"].sum(-1).tolist() == [3, 2]
    encoded = encode_videos(model, processor, [{"video_id": "one", "path": str(path)}], num_workers=0)
    with torch.no_grad():
        expected = model.get_video_features(batch["pixel_values"], batch["video_mask"])
        tower = source.video_model if family == "videoprism" else source.video_encoder
        pooled = tower(batch["pixel_values"]).pooler_output
        pooled = pooled[:, 0] if family == "videoprism" else source.video_head(pooled)
    torch.testing.assert_close(encoded.embeddings.video_embeds, expected.video_embeds)
    torch.testing.assert_close(expected.video_embeds[0], pooled / pooled.norm(dim=-1, keepdim=True), rtol=0, atol=1e-5)
    first, last = encoded.items[0]["span"]
    assert encoded.timestamps.shape == (1, 1) and encoded.timestamps.item() == pytest.approx((first + last) / 2)
    assert 0 <= first < last
    (hit,) = VideoIndex.build(encoded, model, processor).search("a red square", top_k=1)[0]
    assert (hit.video_id, hit.start, hit.end) == ("one", pytest.approx(first, abs=1e-3), pytest.approx(last, abs=1e-3))
    match = word_frame_match(model, processor, "a red square", {"video_id": "one", "path": str(path)})
    assert match.products.shape == (3, 1) and len(match.frames) == len(match.timestamps) == 1
    endpoint = object.__new__(EndpointHandler)
    endpoint.model, endpoint.processor = model, processor
    (answered,) = endpoint._answer(
        [], processor(videos=str(path), return_timestamps=True, return_tensors="pt"), "embeddings"
    )["videos"]
    assert answered["timestamps"] == pytest.approx([(first + last) / 2]) and len(answered["frame_embeds"]) == 1


@pytest.mark.slow
def test_a_tower_of_windows_is_exported(pair):
    """torch.export of both towers, short windows too: any number of rows, one graph."""
    model = pair[2]
    given = example_inputs(model.config, 3)
    given["video"]["pixel_values"] = torch.randn(3, 4, 3, 16, 16)
    given["video"]["video_mask"] = torch.arange(4) < torch.tensor(COUNTS)[:, None]
    for side, tower in (("text", TextTower(model)), ("video", VideoTower(model))):
        program = exported_program(tower, example_inputs(model.config)[side])
        with torch.no_grad():
            torch.testing.assert_close(program.module()(**given[side]), tower(**given[side]), rtol=0, atol=2e-5)


OPERATORS = """
import torch

library = torch.library.Library("torchvision", "DEF")  # they are in its CUDA build only, and here nobody calls them
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


@pytest.mark.second_env
@pytest.mark.timeout(900)
def test_with_the_frame_tower_of_timm(tmp_path):
    """This file again, PE-Video with PE-Core's frame tower of timm, which brings torchvision."""
    vision = "0." + str(int(torch.__version__.split(".")[1]) + 15)  # they are released together
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path]
    subprocess.run([*pip, "timm", f"torchvision=={vision}.*"], check=True)
    (tmp_path / "vision_operators.py").write_text(OPERATORS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "vision_operators", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]
