"""Small parts of the towers and of the model by hand: where texts end, how towers are built, what is refused."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dmae import DMAEConfig, DMAEForTextVideoRetrieval
from dmae.modeling_dmae import similarity_dmae, towers_dmae, video_towers_dmae
from dmae.modeling_dmae.embeddings_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.partial_order_dmae import PartialOrder, TokenWeightPredictor, select_tokens
from dmae.modeling_dmae.similarity_dmae import (
    mean_paired_interaction,
    paired_interaction,
    token_interaction,
    word_frame_products,
)
from dmae.modeling_dmae.towers_dmae import (
    AltClipBackbone,
    ChineseClipBackbone,
    ClipBackbone,
    MetaClip2Backbone,
    Siglip2Backbone,
    SiglipBackbone,
    backbone_of,
    dual_settings,
)
from dmae.modeling_dmae.video_towers_dmae import PeVideoBackbone, VideoPrismBackbone, require


def refused(message: str, kind=ValueError):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


# ---------------------------------------------------------------------- where texts end, and which pieces are words

IDS = torch.tensor([[5, 7, 9, 2, 0], [5, 9, 7, 7, 7], [0, 0, 9, 9, 9]])
ATTENDED = torch.tensor([[True] * 4 + [False], [True] * 5, [True, True, False, False, False]])


@pytest.mark.parametrize(
    ("backbone", "settings", "ends"),
    [
        (ClipBackbone, {"eos_token_id": 9}, [2, 1, 2]),  # of the last the end is not attended: one past its last piece
        (ClipBackbone, {"eos_token_id": 2}, [2, 1, 0]),  # the highest id that is attended, the first of equals
        (MetaClip2Backbone, {"eos_token_id": 2}, [3, 5, 2]),
        (AltClipBackbone, {"eos_token_id": 9}, [2, 1, 2]),
        (ChineseClipBackbone, {"pad_token_id": 7}, [3, 1, 1]),
        (PeVideoBackbone, {"pad_token_id": 7}, [3, 1, 1]),
        (VideoPrismBackbone, {"pad_token_id": 7}, [4, 2, 2]),
        (SiglipBackbone, {}, [4, 5, 2]),
    ],
)
def test_a_text_s_end_is_found_by_its_family(backbone, settings, ends):
    assert backbone.end_positions(SimpleNamespace(**settings), IDS, ATTENDED).tolist() == ends


def test_siglip_s_end_is_its_own_id_and_its_words_lie_above_it():
    ids = torch.tensor([[4, 5, 1, 1, 0], [4, 1, 6, 0, 0]])
    attended = torch.tensor([[True, True, True, False, False], [True, False, True, True, False]])
    assert SiglipBackbone.end_positions(None, ids, attended).tolist() == [2, 4]
    expected = [[True, True, False, False, False], [True, False, True, False, False]]
    assert SiglipBackbone.words(ids, attended, None).tolist() == expected


def test_words_lie_between_the_first_piece_and_the_end():
    attended, ends = torch.tensor([[True] * 5, [True, True, False, True, True]]), torch.tensor([3, 4])
    ids = torch.zeros(2, 5, dtype=torch.long)
    between = [[False, True, True, False, False], [False, True, False, True, False]]
    assert ClipBackbone.words(ids, attended, ends).tolist() == between
    assert PeVideoBackbone.words(ids, attended, ends).tolist() == between
    from_the_first = [[True, True, True, False, False], [True, True, False, True, False]]
    assert VideoPrismBackbone.words(ids, attended, ends).tolist() == from_the_first


# ---------------------------------------------------------------------- how towers are built and read


def test_projections_go_from_each_tower_s_width_into_the_joint_space():
    tower = dict(intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    text = dict(tower, hidden_size=16, vocab_size=9, max_position_embeddings=8)
    config = DMAEConfig.tiny(
        text_config=text, vision_config=dict(tower, hidden_size=64, image_size=8, patch_size=4), projection_dim=32,
        max_words=8,
    )  # fmt: skip
    model = nn.Module()
    ClipBackbone.build(model, config)
    for projection, width in ((model.text_projection, 16), (model.visual_projection, 64)):
        assert projection.weight.shape == (32, width) and projection.bias is None
        assert projection.init_std == width**-0.5
    assert model.text_model.config.hidden_size == 16 and model.vision_model.config.hidden_size == 64


def test_towers_that_end_in_the_joint_space_must_be_of_its_width():
    towers = {
        "text_config": SimpleNamespace(projection_size=8, hidden_size=8),
        "vision_config": SimpleNamespace(hidden_size=16),
    }
    for width in (8, 16, 24):
        config = SimpleNamespace(**towers, projection_dim=width)
        with refused(
            f"projection_dim={width} must equal text_config.projection_size=8 and vision_config.hidden_size=16: "
            "SigLIP's heads end in the joint space"
        ):
            SiglipBackbone.build(None, config)
        with refused(
            f"projection_dim={width} must equal text_config.hidden_size=8 and vision_config.hidden_size=16: "
            "VideoPrism's towers end in the joint space"
        ):
            VideoPrismBackbone.build(None, config)


def test_towers_that_this_transformers_lacks_are_asked_for(monkeypatch):
    same = SimpleNamespace(hidden_size=8)
    config = SimpleNamespace(text_config=same, vision_config=same, projection_dim=8)
    said = "this transformers has no {}; install transformers 5.23 or later"
    require("a tower", "Any")
    for name, backbone, family in (
        ("VideoPrismTextModel", VideoPrismBackbone, "VideoPrism"),
        ("PeVideoEncoder", PeVideoBackbone, "PE-Video"),
    ):
        monkeypatch.setattr(video_towers_dmae, name, None)
        with refused(said.format(family), ImportError):
            backbone.build(None, config)


def test_pe_video_s_heads_go_from_each_tower_s_width(monkeypatch):
    built = lambda name: SimpleNamespace(from_config=lambda c: (name, c), _from_config=lambda c: (name, c))  # noqa: E731
    monkeypatch.setattr(video_towers_dmae, "AutoModel", built("text"))
    monkeypatch.setattr(video_towers_dmae, "PeVideoEncoder", built("video"))
    monkeypatch.setattr(video_towers_dmae, "PeVideoContrastiveHead", lambda *sizes: sizes)
    text, vision, model = SimpleNamespace(hidden_size=8), SimpleNamespace(hidden_size=16), SimpleNamespace()
    PeVideoBackbone.build(model, SimpleNamespace(text_config=text, vision_config=vision, projection_dim=4))
    assert (model.text_model, model.vision_model) == (("text", text), ("video", vision))
    assert (model.text_projection, model.visual_projection) == ((8, 4), (16, 4))


def test_a_scale_that_multiplies_as_it_is_becomes_its_logarithm():
    text, video = SimpleNamespace(hidden_size=8), SimpleNamespace()
    config = SimpleNamespace(text_config=text, video_config=video)
    for scale, start in ((0.5, pytest.approx(-0.6931472)), (2.0, pytest.approx(0.6931472)), (0.0, None), (-1.0, None)):
        source = SimpleNamespace(config=config, text_video_logit_scale=torch.tensor(scale))
        towers = {"text_config": text, "vision_config": video, "projection_dim": 8}
        expected = towers if start is None else towers | {"logit_scale_init_value": start}
        assert PeVideoBackbone.settings(source) == expected


def test_a_dual_encoder_brings_its_towers_its_width_and_its_scale():
    towers = {
        "text_config": SimpleNamespace(max_position_embeddings=64),
        "vision_config": SimpleNamespace(hidden_size=7),
    }
    scale = torch.tensor(1.5)
    for width, expected in (({"projection_dim": 9}, 9), ({"projection_dim": None}, 7), ({}, 7)):
        source = SimpleNamespace(config=SimpleNamespace(**towers, **width), logit_scale=scale)
        found = {**towers, "projection_dim": expected, "logit_scale_init_value": 1.5}
        assert dual_settings(source) == found == ClipBackbone.settings(source)
        assert SiglipBackbone.settings(source) == {**found, "max_words": 64}


def test_naflex_towers_are_given_patches_in_raster_order_channels_last():
    given, video = [], torch.arange(2 * 3 * 4 * 6).float().view(2, 3, 4, 6)
    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(patch_size=2)),
        vision_model=lambda **words: given.append(words) or "output",
    )
    assert Siglip2Backbone.vision_output(model, video, output_attentions=True) == "output"
    (words,) = given
    patches, seen, shapes = (words[name] for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes"))
    assert patches.shape == (2, 6, 12) and words["output_attentions"] is True
    for place in range(6):
        top, left = 2 * (place // 3), 2 * (place % 3)
        expected = video[1, :, top : top + 2, left : left + 2].permute(1, 2, 0).flatten()
        assert torch.equal(patches[1, place], expected)
    assert torch.equal(seen, torch.ones(2, 6, dtype=torch.long)) and shapes.tolist() == [[2, 3], [2, 3]]


def test_towers_of_two_families_have_no_adapter():
    text, vision = SimpleNamespace(model_type="clip_text_model"), SimpleNamespace(model_type="siglip_vision_model")
    with refused(
        "towers 'clip_text_model' and 'siglip_vision_model' have no adapter; both must be of one family among: "
        "clip, metaclip_2, chinese_clip, altclip, siglip, siglip2, videoprism, pe_video"
    ):
        backbone_of(SimpleNamespace(text_config=text, vision_config=vision))
    vision.model_type = "clip_vision_model"
    assert backbone_of(SimpleNamespace(text_config=text, vision_config=vision)) is ClipBackbone
    text.model_type, vision.model_type = "modernbert", "pe_video_encoder"
    assert backbone_of(SimpleNamespace(text_config=text, vision_config=vision)) is PeVideoBackbone
    with refused("a tower that merges tokens has no states of all patches to give; set merge_tokens to 0"):
        towers_dmae.ClipBackbone.merged_tokens(None, None, False, {"output_attentions": True})


def test_the_smallest_configuration_is_as_it_is_told():
    config = DMAEConfig.tiny()
    for tower in (config.text_config, config.vision_config):
        sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        assert [getattr(tower, name) for name in sizes] == [64, 128, 2, 1]
    text, vision = config.text_config, config.vision_config
    assert (text.vocab_size, text.max_position_embeddings, vision.image_size, vision.patch_size) == (128, 32, 32, 16)
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (0, 1, 1)
    assert (config.projection_dim, config.max_words, config.max_frames, config.temporal_layers) == (64, 16, 4, 1)


# ---------------------------------------------------------------------- TPM-CL


def test_a_predictor_has_its_sizes_and_no_bias_that_a_softmax_would_not_see():
    predictor = TokenWeightPredictor(6, 3, 8)
    assert predictor.mix.weight.shape == (6, 3) and predictor.mix.bias is None
    assert predictor.fc1.weight.shape == (4, 16) and predictor.fc1.bias is not None
    assert predictor.fc2.weight.shape == (1, 4) and predictor.fc2.bias is None
    assert predictor.layer_norm.normalized_shape == (16,)


def test_tokens_are_masked_up_to_the_share_and_always_one():
    weights = torch.tensor([[0.25, 0.5, 0.25, 0.0], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
    mask = torch.tensor([[True, True, True, False], [True] * 4, [True] * 4])
    kept = select_tokens(weights, mask, 0.75)
    assert kept.tolist() == [[True, False, True, True], [True, True, False, False], [False, False, True, True]]
    assert select_tokens(weights, mask, 0.1).sum(1).tolist() == [3, 3, 3], "the heaviest goes, however heavy"


@pytest.mark.parametrize("gradient", ["none", "straight_through"])
def test_only_the_straight_mask_trains_the_visual_predictor(gradient, tiny_model):
    model = tiny_model(mask_gradient=gradient)
    assert bool([*model.visual_predictor.parameters()]) is (gradient == "straight_through")
    assert [*model.text_predictor.parameters()]
    names = {"mix.weight", "layer_norm.weight", "layer_norm.bias", "fc1.weight", "fc1.bias", "fc2.weight"}
    assert model.visual_predictor.state_dict().keys() == names


def test_a_margin_is_of_the_time_that_the_model_is_told():
    def margin(schedule, progress, training):
        config = SimpleNamespace(margin_schedule=schedule, partial_margin=0.6, partial_margin_start=0.2)
        return PartialOrder.margin(SimpleNamespace(config=config, progress=progress, training=training))

    assert margin("constant", None, True) == 0.6 == margin("linear", 0.0, False) == margin("linear", None, False)
    assert margin("linear", 0.5, True) == pytest.approx(0.4) and margin("linear", 0.0, True) == 0.2
    with pytest.raises(ValueError, match=r"^margin_schedule='linear' depends on how much of training is done: set"):
        margin("linear", None, True)


@pytest.mark.parametrize("interaction", ["mean", "ti"])
def test_triplets_compare_a_pair_with_itself_without_a_part(interaction, tiny_model, tiny_batch):
    """With a margin so large that no hinge is shut: the gap between the masked score and the whole one."""
    model = tiny_model(interaction=interaction, temporal_init="random").double()
    tiny_batch["pixel_values"], tiny_batch["word_weights"] = (
        tiny_batch[name].double() for name in ("pixel_values", "word_weights")
    )
    with torch.no_grad():
        text, video, tokens = model.encode_pairs(**tiny_batch)
        losses, valid = model.partial_order_terms(text, video, tokens, margin=50.0)
        masks = model.partial_order_masks(text, tokens)

        def scored(query, embeds, weights):
            if interaction == "mean":
                return mean_paired_interaction(query, embeds, video.video_mask)
            return paired_interaction(query, embeds, weights, video.video_mask)

        def direction(weights):
            return nn.functional.normalize((tokens.text_tokens * weights[..., None]).sum(1), dim=-1)

        words, fewer = direction(masks.text_weights), direction(masks.text_weights * masks.text_keep)
        hidden = tokens.visual_tokens * masks.visual_keep[..., None]
        masked = model._temporal(hidden, tokens.visual_mask, tokens.positions, video.video_mask)
        whole, seen = (video.video_embeds, video.frame_weights), text.sentence_embeds
        gaps = [scored(seen, *masked) - scored(seen, *whole), scored(words, *masked) - scored(words, *whole)]
        gaps.append(scored(fewer, *whole) - scored(words, *whole))
    torch.testing.assert_close(losses[valid] - 50.0, torch.stack(gaps)[valid], rtol=1e-6, atol=1e-9)
    assert valid.any(1).all() and (torch.stack(gaps)[valid].abs() > 1e-6).any()


# ---------------------------------------------------------------------- similarity and the model


def test_products_of_words_and_frames_are_0_at_padding():
    words, frames = torch.randn(2, 3, 4), torch.randn(3, 2, 4)
    seen, shown = torch.tensor([[True, True, False]] * 2), torch.tensor([[True, False]] * 3)
    words[~seen], frames[~shown] = float("nan"), float("nan")
    text = TextEmbeddings(words[:, 0], words, torch.ones(2, 3), seen)
    found = word_frame_products(text, VideoEmbeddings(frames, frames, torch.ones(3, 2), shown))
    assert found.shape == (2, 3, 3, 2) and not found[:, :, 2].any() and not found[..., 1].any()
    torch.testing.assert_close(found[:, :, :2, 0], torch.einsum("atd,bd->abt", words[:, :2], frames[:, 0]))


def test_the_kernel_of_a_gpu_is_given_words_first_and_no_garbage(monkeypatch):
    given = []
    monkeypatch.setattr(similarity_dmae, "fused_pays", lambda *both: given.append(both) or True)
    kernel = SimpleNamespace(apply=lambda *arguments: given.append(arguments) or "scores")
    monkeypatch.setattr(similarity_dmae, "FusedInteraction", kernel)
    words, frames = torch.randn(2, 3, 4, requires_grad=True), torch.randn(3, 2, 4).half()
    frames[0, 1] = float("nan")
    masks = torch.ones(2, 3, dtype=torch.bool), torch.tensor([[True, False], [True, True], [True, True]])
    weights = torch.ones(2, 3), torch.ones(3, 2)
    assert token_interaction(words, frames, *weights, *masks) == "scores"
    (left, right), (first, second, *rest) = given
    assert left is first is words and right is second
    assert torch.equal(second, torch.where(masks[1][..., None], frames.float(), 0.0)) and len(rest) == 4
    assert all(found is wanted for found, wanted in zip(rest, (*weights, *masks)))


def test_states_come_out_where_they_were_asked_for(tiny_model, tiny_batch):
    model = tiny_model(partial_order=False)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        hidden = model(**tiny_batch, output_hidden_states=True)
        attended = model(**tiny_batch, output_attentions=True)
    for side in ("text_model_output", "vision_model_output"):
        assert hidden[side].attentions is None and len(hidden[side].hidden_states) == 3
        assert attended[side].hidden_states is None and len(attended[side].attentions) == 2
    assert model._states(None, None) == {"output_attentions": False, "output_hidden_states": False}
    model.config.output_hidden_states = True
    assert model._states(None, None) == {"output_attentions": False, "output_hidden_states": True}
    assert model._states(True, False) == {"output_attentions": True, "output_hidden_states": False}
    with refused("nothing to encode: give input_ids of texts, or pixel_values of videos, or both"):
        model()


def test_a_name_that_is_no_field_is_refused_before_anything_is_read():
    with pytest.raises(
        ValueError, match=r"^'max_frame' is not a field of DMAEConfig; did you mean 'max_frames'\? valid: "
    ):
        DMAEForTextVideoRetrieval.from_clip("nowhere", max_frame=3)
    with pytest.raises(ValueError, match=r"^frame_tokens without video_mask: give the mask \(B,F\)"):
        DMAEForTextVideoRetrieval.get_video_features(None, frame_tokens=torch.zeros(1, 1, 1, 4))
