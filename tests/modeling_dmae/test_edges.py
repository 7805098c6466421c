"""Edges of the small functions and of the configuration: on both sides of every bound, and what is said beyond it."""

import re
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, BertModel, SiglipTextConfig, SiglipVisionConfig

from dmae import DMAEConfig, DMAEForTextVideoRetrieval
from dmae.modeling_dmae import fused_dmae
from dmae.modeling_dmae.attention_dmae import textual_attention
from dmae.modeling_dmae.configuration_dmae import COUNTS, NUMBERS, SWITCHES, closest
from dmae.modeling_dmae.embeddings_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.modeling_dmae import WeightHead, fields_of, one_of, require_same_shape
from dmae.modeling_dmae.objective_dmae import composed, contrastive_terms, triplet_means
from dmae.modeling_dmae.similarity_dmae import check_embeddings, similarity
from dmae.modeling_dmae.tower_tokens_dmae import first_position
from dmae.modeling_dmae.vectors_dmae import (
    masked_mean_direction,
    masked_softmax,
    require_finite,
    require_valid_rows,
    uniform_weights,
    unit,
    wide,
)


def refused(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def some_pairs(count: int, seed: int = 0) -> tuple[TextEmbeddings, VideoEmbeddings]:
    generator = torch.Generator().manual_seed(seed)
    words, frames = torch.randn(count, 3, 8, generator=generator), torch.randn(count, 2, 8, generator=generator)
    text = TextEmbeddings(words[:, 0], words, torch.full((count, 3), 1 / 3), torch.ones(count, 3, dtype=torch.bool))
    return text, VideoEmbeddings(frames, frames, torch.full((count, 2), 0.5), torch.ones(count, 2, dtype=torch.bool))


# ---------------------------------------------------------------------- vectors and weights


def test_small_weights_are_shares_all_the_same():
    """A caption of words that every caption has weighs little; its words still sum to 1."""
    weights, mask = torch.tensor([[0.1, 0.3, 5.0], [0.0, 0.0, 0.0]]), torch.tensor([[True, True, False]] * 2)
    found = textual_attention(weights, mask, "linear")
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.5, 0.0]]))
    with refused("mode='soft' is not a choice; valid: 'softmax', 'linear', 'uniform'"):
        textual_attention(weights, mask, "soft")


def test_narrow_floats_are_widened_and_wide_ones_kept():
    for given, kept in ((torch.float16,) * 2, (torch.bfloat16,) * 2, (torch.float32,) * 2, (torch.float64,) * 2):
        x = torch.tensor([[3.0, 4.0]], dtype=given)
        assert wide(x).dtype == (torch.float32 if given.itemsize == 2 else given)
        assert unit(x).dtype == kept and unit(x).tolist() == [pytest.approx([0.6, 0.8], abs=2e-3)]
    assert unit(torch.tensor([[2e-6, 0.0], [5e-7, 0.0]])).tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert unit(torch.tensor([[1e-6, 0.0]], dtype=torch.float64)).tolist() == [[1.0, 0.0]], "1e-6 is long enough"
    assert unit(torch.tensor([[float("nan"), 1.0]])).isnan().all(), "a damaged vector would count as an empty one"


def test_weights_are_shared_among_what_is_valid():
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert uniform_weights(mask).tolist() == [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]
    assert uniform_weights(mask, torch.float64).dtype == torch.float64
    logits = torch.tensor([[0.0, 9.0, 0.0], [7.0, 1.0, 7.0]], dtype=torch.bfloat16)
    found = masked_softmax(logits, mask)
    assert found.dtype == torch.float32 and found.tolist() == [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]
    frames = torch.tensor([[[3.0, 0.0], [9.0, 9.0], [3.0, 8.0]], [[9.0, 9.0], [0.0, 2.0], [9.0, 9.0]]])
    torch.testing.assert_close(masked_mean_direction(frames, mask), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))


def test_what_is_empty_or_no_number_is_named_by_its_row(monkeypatch):
    mask = torch.tensor([[True, False], [False, False], [False, False]])
    with refused("word_mask: row 1 of 3 has nothing valid; say more"):
        require_valid_rows(mask, "word_mask", "say more")
    require_valid_rows(mask[:1], "word_mask", "say more")
    x = torch.zeros(3, 2, 4)
    x[1, 1, 0] = float("inf")
    said = "holds NaN or infinity; look for a damaged input there, or lower the learning rate"
    for given in (None, torch.ones(3, 2, dtype=torch.bool)):
        with refused(f"x: row 1 of 3 {said}"):
            require_finite(x, "x", given)
    x[2, 0, 0], shown = float("nan"), torch.tensor([[True, True], [True, False], [True, True]])
    with refused(f"x: row 2 of 3 {said}"):
        require_finite(x, "x", shown)
    require_finite(x[:2], "x", shown[:2])
    large = torch.full((2, 8), 3e38)
    require_finite(large, "x")  # their sum is infinite, and none of them is
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    require_valid_rows(mask, "word_mask", "say more")  # a graph that is being made has no values
    require_finite(x, "x")


def test_the_first_position_is_the_first_or_one_past_the_end():
    found = torch.tensor([[False, True, True, False], [False, False, False, False], [False, False, False, False]])
    attended = torch.tensor([[True, True, True, True], [True, True, False, False], [False, False, False, False]])
    assert first_position(found, attended).tolist() == [1, 2, 0]


# ---------------------------------------------------------------------- the loss


def test_the_loss_is_taken_in_full_precision_and_without_duplicates():
    text, video = some_pairs(4)
    config, scale = DMAEConfig.tiny(), torch.tensor(5.0)
    plain = contrastive_terms(text, video, scale, config)
    assert torch.equal(plain["scores"], similarity(text, video, config))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = contrastive_terms(text, video, scale, config)
    assert all(torch.equal(narrow[name], plain[name]) for name in ("scores", "contrastive", "hard_negative_share"))
    scores = plain["scores"]
    i, j = next((i, j) for i in range(4) for j in range(4) if i != j and scores[i, j] > min(scores[i, i], scores[j, j]))
    ids = torch.arange(4)
    same = torch.where(ids == j, i, ids)
    for words in ((same, ids), (ids, same), (same, None), (None, same)):
        apart = contrastive_terms(text, video, scale, config, *words)
        assert apart["hard_negative_share"] < plain["hard_negative_share"]
        assert apart["contrastive"] != plain["contrastive"]
        together = contrastive_terms(text, video, scale, DMAEConfig.tiny(mask_duplicates=False), *words)
        assert all(torch.equal(together[name], plain[name]) for name in plain)
    alone = contrastive_terms(text[:1], video[:1], scale, config)
    assert alone["hard_negative_share"] == 0 and alone["contrastive"] == 0


def test_a_triplet_s_mean_is_over_the_pairs_that_have_it():
    losses = torch.tensor([[1.0, 2.0, 9.0, 6.0], [5.0, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
    valid = torch.tensor([[True, True, False, True], [True, False, False, False], [False] * 4])
    assert triplet_means(losses, valid).tolist() == [3.0, 5.0, 0.0]
    assert triplet_means(losses, valid, torch.tensor([6, 2, 1])).tolist() == [1.5, 2.5, 0.0]
    one, config = torch.tensor(1.0), SimpleNamespace(partial_weight=0.25)
    assert composed(one, None, config) is one and composed(one, torch.tensor(8.0), config) == 3.0


# ---------------------------------------------------------------------- the configuration


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_whole_numbers_from_their_least_one_on(name):
    lowest = COUNTS[name]
    assert name == "projection_dim" or getattr(DMAEConfig.tiny(**{name: lowest}), name) == lowest
    for value in (lowest - 1, True, float(lowest + 1), None):
        with refused(f"{name}={value!r} must be a whole number of at least {lowest}"):
            DMAEConfig.tiny(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_have_their_bounds_among_them(name):
    lowest, highest = NUMBERS[name]
    for value in {lowest, highest, 0, 1.5} - {float("-inf"), float("inf")}:
        assert getattr(DMAEConfig.tiny(**{name: value}), name) == value
    outside = [lowest - 1e-6] * (lowest > float("-inf")) + [highest + 1e-6] * (highest < float("inf"))
    for value in (*outside, True, "1", None, float("nan")):
        with refused(f"{name}={value!r} must be a number between {lowest} and {highest}"):
            DMAEConfig.tiny(**{name: value})


def test_switches_and_words_are_said_as_they_are_meant():
    for name in SWITCHES:
        for value in (0, 1, None, "False"):
            with refused(f"{name}={value!r}: give True or False"):
                DMAEConfig.tiny(**{name: value})
    with refused("loss='info-nce' is not a choice; did you mean 'info_nce'? valid: 'info_nce', 'neg_nce'"):
        DMAEConfig.tiny(loss="info-nce")
    assert closest("xyz", ("ab", "cd")) == "valid: 'ab', 'cd'" and closest(7, ("ab",)) == "valid: 'ab'"
    for value in (0, 1, 1.0, -0.1, "0.5", True, None):
        with refused(f"mask_ratio={value!r} (τ) must lie between 0 and 1, both excluded; try 0.6"):
            DMAEConfig.tiny(mask_ratio=value)
    assert DMAEConfig.tiny(mask_ratio=0.99).mask_ratio == 0.99


def test_what_the_towers_have_is_the_most_that_can_be_asked_for():
    assert DMAEConfig.tiny(max_words=32).max_words == 32
    with refused("max_words=33 exceeds the text tower's 32 positions; set max_words to at most 32"):
        DMAEConfig.tiny(max_words=33)
    assert DMAEConfig.tiny(patches_per_frame=4, temporal_input="patch").tokens_per_frame == 5
    with refused("patches_per_frame=5, but a frame has 4 patches; use None to keep them all"):
        DMAEConfig.tiny(patches_per_frame=5)
    with refused("patches_per_frame=0 must be a whole number of at least 1"):
        DMAEConfig.tiny(patches_per_frame=0)
    assert DMAEConfig.tiny(merge_tokens=2).merge_tokens == 2
    said = "but a frame has 4 patches, and at most half of them join others at once; set it to 2 or less"
    with refused(f"merge_tokens=3, {said}"):
        DMAEConfig.tiny(merge_tokens=3)
    towers = {"text_config": SiglipTextConfig(), "vision_config": SiglipVisionConfig()}
    said = "pools its patches by a head that does not know how many a token stands for; set it to 0"
    with refused(f"merge_tokens=1: 'siglip_vision_model' {said}"):
        DMAEConfig(**towers, merge_tokens=1)
    assert DMAEConfig(**towers).merge_tokens == 0
    with refused("text_config: model_type 'clop' is unknown to transformers; CLIP's is 'clip_text_model'"):
        DMAEConfig.tiny(text_config={"model_type": "clop"})
    assert DMAEConfig(vision_config={"model_type": None}).vision_config.model_type == "clip_vision_model"


def test_a_text_tower_that_cannot_be_copied_is_told_by_all_that_differs():
    tower = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=1)
    text = dict(tower, vocab_size=64, max_position_embeddings=16)
    words = {"temporal_init": "clip", "text_config": text, "temporal_layers": 2}
    assert DMAEConfig.tiny(**words).temporal_heads == 1
    with refused(
        "temporal_init='clip' cannot copy the text tower: text_config.hidden_size is 64 and must be 192; "
        "text_config.num_attention_heads is 1 and must be 3; text_config.intermediate_size is 256 and must be 768; "
        "temporal_layers is 3, the text tower has 2; use 'identity'"
    ):
        DMAEConfig.tiny(**{**words, "projection_dim": 192, "temporal_layers": 3})
    with refused("temporal_init='clip' copies a CLIP text tower, not 'siglip_text_model'; use 'identity'"):
        DMAEConfig(SiglipTextConfig(), SiglipVisionConfig(), temporal_init="clip")
    assert DMAEConfig.tiny(temporal_init="clip", temporal_layers=0, projection_dim=32).temporal_heads == 1


def test_sizes_are_read_from_every_kind_of_tower():
    config = DMAEConfig.tiny(temporal_input="patch")
    assert (config.tokens_per_frame, config.temporal_positions, config.sees_windows) == (5, 20, False)
    assert DMAEConfig.window_settings(config.vision_config) == {}
    assert DMAEConfig.tiny(projection_dim=192).temporal_heads == 3
    assert DMAEConfig.tiny(text_granularity="words", interaction="wti").learns_word_weights
    assert not DMAEConfig.tiny().learns_word_weights and not DMAEConfig.tiny().learns_frame_weights
    config.vision_config.image_size = (48, 32)
    assert config.frame_size == 48 and config.patches_in_frame == 9
    config.vision_config = SimpleNamespace(model_type="siglip2_vision_model", num_patches=256, patch_size=14)
    assert config.frame_size == 224 and config.patches_in_frame == 256
    for inner, size in (
        (SimpleNamespace(image_size=20, model_args={"img_size": 30}), 20),
        (SimpleNamespace(image_size=None, model_args={"img_size": 30}), 30),
        (SimpleNamespace(model_args=None, architecture="vit_pe_core_large_patch14_336"), 336),
    ):
        config.vision_config = SimpleNamespace(model_type="pe_video_encoder", vision_config=inner)
        assert (config.frame_size, config.patches_in_frame, config.temporal_positions) == (size, 0, 1)
        assert config.sees_windows and DMAEConfig.window_settings(config.vision_config)["max_frames"] == 16
    words = {"max_words": 16, "word_weighting": "linear", "content_weight": 3.0, "irrelevant_words": 7}
    assert DMAEConfig.tiny(**words).processor_words() == words


# ---------------------------------------------------------------------- the model


def test_frames_go_by_one_name():
    one, other = torch.zeros(1), torch.ones(1)
    assert one_of(one, None) is one and one_of(None, other) is other and one_of(None, None, required=False) is None
    with refused("pixel_values and pixel_values_videos are two names of one input; give one of them"):
        one_of(one, other)
    with refused("nothing to encode: give input_ids of texts, or pixel_values of videos, or both"):
        one_of(None, None)


def test_what_goes_together_has_one_shape():
    ids = torch.zeros(2, 3)
    require_same_shape(ids, attention_mask=torch.zeros(2, 3), word_mask=None)
    with refused("word_mask is (2, 4), input_ids (2, 3); they go together"):
        require_same_shape(ids, attention_mask=torch.zeros(2, 3), word_mask=torch.zeros(2, 4))
    text, video = some_pairs(2)
    check_embeddings(text, video)
    with refused("texts are 5 wide and videos 8; encode both with the same model"):
        check_embeddings(text.replace(sentence_embeds=text.sentence_embeds[:, :5]), video)
    with refused("video_mask is (2, 1), its embeddings are (2, 2, 8); give one per token"):
        check_embeddings(text, video.replace(video_mask=video.video_mask[:, :1]))


def test_outputs_have_the_states_of_the_side_they_are_of():
    text, video = some_pairs(2)
    text.hidden_states, video.attentions = ("h",), ("a",)
    found = fields_of(text, video)
    assert found["text_model_output"].hidden_states == ("h",) and found["text_model_output"].attentions is None
    assert found["vision_model_output"].attentions == ("a",) and "sentence_embeds" not in found
    assert found["text_embeds"] is text.sentence_embeds and found["video_embeds"] is video.video_embeds
    video.attentions = None
    assert fields_of(None, video).keys() == {*video.names()}
    assert fields_of(text, None).keys() == {*text.names(), "text_embeds", "text_model_output"} - {"sentence_embeds"}


def test_texts_that_are_too_long_and_attentions_that_nobody_computes_are_refused(tiny_model):
    model = tiny_model(partial_order=False)
    with refused("input_ids has 33 positions, the text tower 32; truncate to max_words=16"):
        model.get_text_features(input_ids=torch.zeros(1, 33, dtype=torch.long))
    said = "computes none: call model.set_attn_implementation('eager') first"
    with refused(f"output_attentions=True, but attn_implementation='sdpa' {said}"):
        model.get_text_features(input_ids=torch.zeros(1, 4, dtype=torch.long), output_attentions=True)
    with refused("output_explanation=True is about texts with videos; give input_ids and pixel_values"):
        model(input_ids=torch.tensor([[0, 5, 1]]), output_explanation=True)
    head = WeightHead(3)
    assert head.fc2.starts_at_zero is True and head(torch.ones(2, 4, 3)).shape == (2, 4)


def test_frames_run_alone_are_the_tokens_of_their_windows(tiny_model, tiny_batch):
    model = tiny_model(partial_order=False, temporal_input="patch")
    with torch.no_grad():
        whole = model.get_video_features(pixel_values=tiny_batch["pixel_values"])
        tokens = model.get_frame_tokens(tiny_batch["pixel_values"].flatten(0, 1))
        assert tokens.shape == (12, 5, 64)
        mask = torch.ones(3, 4, dtype=torch.bool)
        again = model.get_video_features(frame_tokens=tokens.unflatten(0, (3, 4)), video_mask=mask)
    torch.testing.assert_close(again.attended_embeds, whole.attended_embeds)


def test_what_is_no_dual_encoder_is_refused_by_its_kind():
    tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    source = BertModel(BertConfig(**tower))
    source.name_or_path = "some/bert"
    with refused("some/bert: a BertModel has no text and vision tower; give a CLIP model"):
        DMAEForTextVideoRetrieval.from_dual_encoder(source)


# ---------------------------------------------------------------------- the kernel of a GPU


def test_the_kernel_is_chosen_where_it_fits_and_pays(monkeypatch):
    class Given(SimpleNamespace):
        def __len__(self):
            return self.shape[0]

    def pays(texts=1024, videos=1024, length=128, number=64, words=torch.float32, frames=torch.float32, on_gpu=True):
        given = Given(shape=(texts, length, 8), dtype=words, is_cuda=on_gpu)
        return fused_dmae.fused_pays(given, Given(shape=(videos, number, 8), dtype=frames, is_cuda=on_gpu))

    monkeypatch.setattr(fused_dmae, "triton", None)
    assert not pays()
    monkeypatch.setattr(fused_dmae, "triton", "there")
    assert pays() and pays(texts=1, videos=1024**2)
    for unfit in ({"length": 129}, {"number": 65}, {"videos": 1023}, {"on_gpu": False}):
        assert not pays(**unfit), unfit
    for narrow in (
        {"words": torch.float16},
        {"frames": torch.float16},
        dict.fromkeys(["words", "frames"], torch.float16),
    ):
        assert not pays(**narrow), narrow
