"""Similarity and attention against plain-loop float64 references, and the properties that must hold for any input."""

import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dmae.modeling_dmae import interaction_dmae, max_gradients_dmae
from dmae.modeling_dmae.attention_dmae import attended_frames, textual_attention, visual_attention
from dmae.modeling_dmae.similarity_dmae import (
    TextEmbeddings,
    VideoEmbeddings,
    mean_interaction,
    paired_interaction,
    pooled_interaction,
    similarity,
    token_interaction,
)
from dmae.modeling_dmae.vectors_dmae import unit

seeds = st.integers(0, 10_000)
few = settings(max_examples=25, deadline=None)


def batch(seed, texts=3, videos=4, words=5, frames=4, width=8, dtype=torch.float64):
    """Random unit embeddings with ragged masks; every row keeps something valid."""
    torch.manual_seed(seed)
    word_mask, video_mask = torch.rand(texts, words) < 0.6, torch.rand(videos, frames) < 0.7
    word_mask[torch.arange(texts), torch.randint(words, (texts,))] = True
    video_mask[torch.arange(videos), torch.randint(frames, (videos,))] = True
    weights = [torch.rand(mask.shape, dtype=dtype) * mask for mask in (word_mask, video_mask)]
    weights = [weight / weight.sum(1, keepdim=True) for weight in weights]
    embeds = unit(torch.randn(videos, frames, width, dtype=dtype))
    attended = attended_frames(embeds, video_mask)
    text = [unit(torch.randn(texts, *shape, width, dtype=dtype)) for shape in ((), (words,))]
    return TextEmbeddings(*text, weights[0], word_mask), VideoEmbeddings(embeds, attended, weights[1], video_mask)


def settings_of(**words):
    return SimpleNamespace(**{"interaction": "ti", "similarity_form": "tokenwise", "text_granularity": "both"} | words)


def loop_tokens(text, video):
    """Eq. 3, R4, entry by entry."""
    scores = torch.zeros(len(text.word_embeds), len(video.video_embeds), dtype=torch.float64)
    for a in range(scores.shape[0]):
        words = [m for m in range(text.word_mask.shape[1]) if text.word_mask[a, m]]
        for b in range(scores.shape[1]):
            frames = [j for j in range(video.video_mask.shape[1]) if video.video_mask[b, j]]
            dot = {(m, j): text.word_embeds[a, m] @ video.attended_embeds[b, j] for m in words for j in frames}
            scores[a, b] = sum(text.word_weights[a, m] * max(dot[m, j] for j in frames) for m in words) / 2
            scores[a, b] += sum(video.frame_weights[b, j] * max(dot[m, j] for m in words) for j in frames) / 2
    return scores


def loop_pooled(query, video):
    scores = torch.zeros(len(query), len(video.video_embeds), dtype=torch.float64)
    for a in range(scores.shape[0]):
        for b in range(scores.shape[1]):
            frames = [j for j in range(video.video_mask.shape[1]) if video.video_mask[b, j]]
            dot = {j: query[a] @ video.attended_embeds[b, j] for j in frames}
            scores[a, b] = (max(dot.values()) + sum(video.frame_weights[b, j] * dot[j] for j in frames)) / 2
    return scores


@few
@given(seeds)
def test_every_form_and_granularity_is_its_equation(seed):
    text, video = batch(seed)
    words, sentence = loop_tokens(text, video), loop_pooled(text.sentence_embeds, video)
    pooled = (text.word_weights[..., None] * text.word_embeds).sum(1)
    expected = {
        ("tokenwise", "words"): words,
        ("tokenwise", "sentence"): sentence,
        ("tokenwise", "both"): (words + sentence) / 2,
        ("pooled", "words"): loop_pooled(pooled, video),
        ("pooled", "both"): loop_pooled((pooled + text.sentence_embeds) / 2, video),
        ("pooled", "sentence"): sentence,
    }
    for (form, granularity), scores in expected.items():
        config = settings_of(similarity_form=form, text_granularity=granularity)
        torch.testing.assert_close(similarity(text, video, config), scores, rtol=0, atol=1e-12)


@few
@given(seeds)
def test_mean_is_the_cosine_of_the_mean_frame(seed):
    text, video = batch(seed)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for b in range(4):
        mean = video.video_embeds[b][video.video_mask[b]].mean(0)
        expected[:, b] = text.sentence_embeds @ mean / mean.norm()
    scores = mean_interaction(text.sentence_embeds, video.video_embeds, video.video_mask)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-12)


@few
@given(seeds)
def test_paired_is_the_diagonal_of_pooled(seed):
    text, video = batch(seed, texts=4)
    whole = pooled_interaction(text.sentence_embeds, *[*video][1:])
    pairs = paired_interaction(text.sentence_embeds, *[*video][1:])
    torch.testing.assert_close(pairs, whole.diagonal(), rtol=0, atol=1e-12)


@few
@given(seeds, st.sampled_from([0.0, 1e9, float("nan"), float("inf")]))
def test_padding_is_inert(seed, garbage):
    text, video = batch(seed)
    before = similarity(text, video, settings_of())
    text = text.replace(word_embeds=text.word_embeds.masked_fill(~text.word_mask[..., None], garbage))
    hidden = ~video.video_mask[..., None]
    video = video.replace(attended_embeds=video.attended_embeds.masked_fill(hidden, garbage))
    torch.testing.assert_close(similarity(text, video, settings_of()), before, rtol=0, atol=0)
    spoilt = video.video_embeds.masked_fill(hidden, garbage)
    torch.testing.assert_close(
        attended_frames(spoilt, video.video_mask), attended_frames(video.video_embeds, video.video_mask)
    )


@few
@given(seeds)
def test_order_of_words_and_frames_does_not_matter(seed):
    text, video = batch(seed)
    words, frames = torch.randperm(5), torch.randperm(4)
    shuffled_text = TextEmbeddings(text.sentence_embeds, *(tensor[:, words] for tensor in [*text][1:]))
    shuffled_video = VideoEmbeddings(*(tensor[:, frames] for tensor in video))
    shuffled = similarity(shuffled_text, shuffled_video, settings_of())
    torch.testing.assert_close(shuffled, similarity(text, video, settings_of()), rtol=0, atol=1e-12)


def leaves_of(seed, **sizes):
    text, video = batch(seed, **sizes)
    leaves = (text.word_embeds, video.attended_embeds, text.word_weights, video.frame_weights)
    return [leaf.clone().requires_grad_() for leaf in leaves], text.word_mask, video.video_mask


def whole_products(leaves, word_mask, video_mask):
    """Eq. 3 with the (Bt,Bv,T,F) tensor in memory, for autograd to differentiate."""
    words, frames, *weights = leaves
    word_weights, frame_weights = (torch.where(mask, w, 0.0) for mask, w in zip((word_mask, video_mask), weights))
    product = torch.einsum("atd,bfd->abtf", words, frames)
    by_word = product.masked_fill(~video_mask[None, :, None], -math.inf).amax(-1)
    by_word = torch.where(word_mask[:, None], by_word, 0.0)
    by_frame = product.masked_fill(~word_mask[:, None, :, None], -math.inf).amax(2)
    by_frame = torch.where(video_mask, by_frame, 0.0)
    return (torch.einsum("at,abt->ab", word_weights, by_word) + torch.einsum("bf,abf->ab", frame_weights, by_frame)) / 2


@pytest.mark.parametrize("chunk_bytes", [None, 40_000, 1])
@pytest.mark.parametrize("tile_rows", [1024, 7])
def test_chunks_and_tiles_equal_the_whole_in_value_and_gradient(chunk_bytes, tile_rows, monkeypatch):
    monkeypatch.setattr(max_gradients_dmae, "TILE_ROWS", tile_rows)
    leaves, *masks = leaves_of(0, texts=13, videos=17, words=9, frames=5, width=150)
    upstream = torch.randn(13, 17, dtype=torch.float64)
    chunked, whole = token_interaction(*leaves, *masks, chunk_bytes=chunk_bytes), whole_products(leaves, *masks)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-12)
    for ours, expected in zip(*(torch.autograd.grad(scores, leaves, upstream) for scores in (chunked, whole))):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@few
@given(seeds, st.sampled_from([None, 4_000, 1]), st.sampled_from(["both", "words", "sentence"]), st.booleans())
def test_without_a_gradient_the_values_are_the_same(seed, chunk_bytes, granularity, thin):
    interaction_dmae.FEW_WORDS = 10_000 if thin else 0  # the product of few words, and that of many
    text, video = batch(seed, texts=7, videos=11)
    config = settings_of(text_granularity=granularity)
    learnt = [tensor.requires_grad_() for tensor in (text.sentence_embeds.clone(), text.word_embeds.clone())]
    with_gradient = similarity(TextEmbeddings(*learnt, *[*text][2:]), video, config, chunk_bytes)
    assert with_gradient.requires_grad
    with torch.no_grad():
        values = similarity(TextEmbeddings(*learnt, *[*text][2:]), video, config, chunk_bytes)
    torch.testing.assert_close(values, with_gradient.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(similarity(text, video, config, chunk_bytes), values, rtol=0, atol=0)
    interaction_dmae.FEW_WORDS = 64


@pytest.mark.parametrize("thin", [True, False])
@pytest.mark.parametrize("texts", [1, 3])
def test_narrow_frames_score_as_wide_ones_whatever_the_pieces(texts, thin, monkeypatch):
    """Pieces of two videos within chunks of five; what padding holds stays out of it."""
    monkeypatch.setattr(interaction_dmae, "FEW_WORDS", 64 if thin else 0)
    monkeypatch.setattr(interaction_dmae, "FEW_CHUNK", 5)
    text, video = batch(5, texts=texts, videos=13, dtype=torch.float32)
    for name in ("FEW_BYTES", "WIDEN_BYTES"):
        monkeypatch.setattr(interaction_dmae, name, 2 * 4 * 8 * 4)
    frames = video.attended_embeds.half()
    expected = similarity(text, video.replace(attended_embeds=frames.float()), settings_of())
    torch.testing.assert_close(
        expected, torch.cat([similarity(text[[n]], video, settings_of()) for n in range(texts)]), atol=1e-3, rtol=0
    )
    spoilt = frames.masked_fill(~video.video_mask[..., None], float("nan"))
    torch.testing.assert_close(
        similarity(text, video.replace(attended_embeds=spoilt), settings_of()), expected, atol=1e-6, rtol=0
    )


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest storage that any operation gives back, those of the inputs aside."""

    def __init__(self, *inputs):
        super().__init__()
        self.known, self.bytes = {tensor.untyped_storage().data_ptr() for tensor in inputs}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("masked", [False, True])
def test_a_few_texts_with_many_videos_take_bounded_memory(masked):
    """20,000 videos are 20 MB of float16 here; what is made on the way is no larger than a chunk or the scores."""
    text, _ = batch(0, texts=2, width=64, dtype=torch.float32)
    frames = unit(torch.randn(20_000, 8, 64)).half()
    mask = torch.ones(20_000, 8, dtype=torch.bool)
    mask[:, 6:] = not masked
    video = VideoEmbeddings(frames, frames, mask / mask.sum(1, keepdim=True), mask)
    with LargestTensor(*video) as largest:
        scores = similarity(text, video, settings_of(), chunk_bytes=400_000)
    assert scores.shape == (2, 20_000) and largest.bytes <= 640_000  # frame weights in the words' type


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("interaction", ["ti", "mean"])
def test_a_damaged_frame_is_named(bad, interaction):
    text, video = batch(3)
    mask = torch.ones_like(video.video_mask)
    video = video.replace(attended_embeds=video.attended_embeds.clone(), video_mask=mask)
    video.attended_embeds[2, 1, 0] = bad
    with pytest.raises(ValueError, match="video_embeds: row 2 of 4 holds NaN or infinity"):
        similarity(text, video, settings_of(interaction=interaction))


def test_the_device_path_gives_the_same_gradient(monkeypatch):
    leaves, *masks = leaves_of(1, texts=6, videos=5)
    upstream = torch.randn(6, 5, dtype=torch.float64)
    sparse = torch.autograd.grad(token_interaction(*leaves, *masks), leaves, upstream)
    monkeypatch.setattr(interaction_dmae, "sparse_gradients", interaction_dmae.dense_gradients)
    dense = torch.autograd.grad(token_interaction(*leaves, *masks), leaves, upstream)
    for ours, other in zip(sparse, dense):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-12)


def test_gradcheck_of_the_kernel_and_of_attention():
    leaves, *masks = leaves_of(2, texts=2, videos=2, words=3, frames=3, width=3)
    assert torch.autograd.gradcheck(lambda *inputs: token_interaction(*inputs, *masks), leaves)
    frames = leaves[1].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: attended_frames(v, masks[1]), [frames])


def test_ties_of_a_max_go_to_the_first_index():
    words = torch.ones(1, 2, 1, dtype=torch.float64, requires_grad=True)
    frames = torch.ones(1, 3, 1, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([[0.5, 0.5]]).double(), torch.full((1, 3), 1 / 3).double()
    mask = torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    token_interaction(words, frames, *weights, *mask).backward()
    torch.testing.assert_close(frames.grad.flatten(), torch.tensor([1 / 2 + 1 / 6, 1 / 6, 1 / 6]).double())
    torch.testing.assert_close(words.grad.flatten(), torch.tensor([1 / 4 + 1 / 2, 1 / 4]).double())


@few
@given(seeds)
def test_lower_bound_that_makes_search_cheap(seed):
    """docs/method.md §9: max_m ¼(q + 2s + t_m)·v̄ never exceeds the tokenwise score, query·v̄ never the pooled one."""
    text, video = batch(seed, texts=6, videos=6)
    mean = (video.frame_weights[..., None] * video.attended_embeds).sum(1)
    pooled = (text.word_weights[..., None] * text.word_embeds).sum(1)
    tokens = (pooled[:, None] + 2 * text.sentence_embeds[:, None] + text.word_embeds) / 4
    bound = (tokens @ mean.T).masked_fill(~text.word_mask[..., None], -math.inf).amax(1)
    assert (bound <= similarity(text, video, settings_of()) + 1e-12).all()
    bound = (pooled + text.sentence_embeds) / 2 @ mean.T
    assert (bound <= similarity(text, video, settings_of(similarity_form="pooled")) + 1e-12).all()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
def test_narrow_floats_lose_only_their_own_rounding(dtype, bound):
    text, video = batch(3)
    exact = similarity(text, video, settings_of())
    text = text.to(dtype=dtype)
    video = video.to(dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = similarity(text, video, settings_of())
    assert narrow.dtype == torch.float32
    assert (narrow - exact).abs().max() < bound


@few
@given(seeds, st.integers(1, 5))
def test_visual_attention_keeps_the_diagonal_and_the_strongest_of_each_column(seed, top_k):
    _, video = batch(seed)
    kept = visual_attention(video.video_embeds, video.video_mask, top_k)
    for b in range(4):
        valid = [j for j in range(4) if video.video_mask[b, j]]
        expected = torch.zeros(4, 4, dtype=torch.float64)
        for column in valid:
            dots = {i: video.video_embeds[b, i] @ video.video_embeds[b, column] for i in valid}
            others = sorted((i for i in valid if i != column), key=lambda i: (-dots[i], i))[: top_k - 1]
            for row in [column, *others]:
                expected[row, column] = dots[row]
        torch.testing.assert_close(kept[b], expected, rtol=0, atol=1e-12)
    attended = attended_frames(video.video_embeds, video.video_mask, top_k)
    assert (attended.norm(dim=-1) <= top_k + 1e-9).all()


def test_visual_attention_folds_into_the_frames():
    text, video = batch(4)
    kept = visual_attention(video.video_embeds, video.video_mask)
    outside = torch.einsum("atd,bfd->abtf", text.word_embeds, video.video_embeds * video.video_mask[..., None]) @ kept
    inside = torch.einsum("atd,bfd->abtf", text.word_embeds, attended_frames(video.video_embeds, video.video_mask))
    torch.testing.assert_close(outside, inside)


def test_textual_attention_by_hand():
    weights, mask = torch.tensor([[0.0, 2.0, 1.0, 9.0]]), torch.tensor([[True, True, True, False]])
    total = 1 + math.e**2 + math.e
    for mode, expected in {
        "softmax": [1 / total, math.e**2 / total, math.e / total, 0],  # R2: an irrelevant word keeps e^0
        "linear": [0, 2 / 3, 1 / 3, 0],
        "uniform": [1 / 3, 1 / 3, 1 / 3, 0],
    }.items():
        torch.testing.assert_close(textual_attention(weights, mask, mode), torch.tensor([expected]))
    nothing = textual_attention(torch.zeros(1, 4), mask, "linear")
    torch.testing.assert_close(nothing, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0]]))


def test_unit_sends_no_gradient_into_a_zero_vector():
    x = torch.tensor([[0.0, 0.0], [1e-9, 0.0], [3.0, 4.0]], requires_grad=True)
    unit(x).sum().backward()
    assert torch.equal(x.grad[:2], torch.zeros(2, 2))
    torch.testing.assert_close(unit(x)[2], torch.tensor([0.6, 0.8]))
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t, v: (t.replace(word_mask=torch.zeros_like(t.word_mask)), v), "word_mask: row 0 of 3"),
        (lambda t, v: (t, v.replace(video_mask=torch.zeros_like(v.video_mask))), "video_mask: row 0 of 4"),
        (lambda t, v: (t.replace(sentence_embeds=t.sentence_embeds * math.nan), v), "sentence_embeds: row 0 of 3"),
        (lambda t, v: (t.replace(sentence_embeds=t.sentence_embeds[:, :5]), v), "same model"),
        (lambda t, v: (t.replace(word_mask=t.word_mask[:, :2]), v), "word_mask is"),
    ],
)
def test_bad_input_is_named(spoil, words):
    with pytest.raises(ValueError, match=words):
        similarity(*spoil(*batch(5)), settings_of())


def test_embeddings_are_model_outputs_that_unpack_and_share_their_rows():
    text, video = batch(0)
    assert [*text] == [text.sentence_embeds, text["word_embeds"], text.word_weights, text.to_tuple()[3]]
    for rows in (slice(1, 3), [1, 2], torch.tensor([1, 2]), np.array([1, 2])):
        some = text[rows]
        assert type(some) is TextEmbeddings
        for part, whole in zip(some, text):
            assert torch.equal(part, whole[1:3])
    again = VideoEmbeddings.from_flat(video.flat("v"), "v")
    joined = VideoEmbeddings.cat([again[:1], again[1:]])
    assert all(torch.equal(one, other) for one, other in zip(joined, video))
    narrow = video.to("cpu", torch.float16)
    assert [tensor.dtype for tensor in narrow] == [torch.float16] * 3 + [torch.bool]
    assert list(video.flat("v")) == ["v.video_embeds", "v.attended_embeds", "v.frame_weights", "v.video_mask"]
    doubled = video.replace(frame_weights=video.frame_weights * 2)
    assert torch.equal(doubled.frame_weights, video.frame_weights * 2) and doubled.video_mask is video.video_mask
    same = pickle.loads(pickle.dumps(text))
    assert torch.equal(same.word_mask, text.word_mask) and list(same.keys()) == text.names()


@pytest.mark.parametrize("count", [1, 12, 256, 300])
def test_the_first_of_equal_maxima_wins(count):
    values = torch.randint(3, (4, count, 2, 5), generator=torch.Generator().manual_seed(count)).float()
    best, place = interaction_dmae.first_max(values, 1)
    assert torch.equal(best, values.amax(1)) and best.shape == (4, 2, 5)
    np.testing.assert_array_equal(place, values.numpy().argmax(1))  # numpy's is the first by definition
    assert place.dtype == (torch.uint8 if count <= 256 else torch.int16)
