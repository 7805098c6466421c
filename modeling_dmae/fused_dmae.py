"""Token interaction for large batches on a GPU, in Triton: both maxima and who won them from one tile of products.

As `MaxInteraction`, with nothing of size Bt·Bv·T·F in memory, not even in chunks: what is kept for the backward pass is
who won, Bt·Bv·(T+F) 16-bit numbers. The gradient of a pair has T+F entries that are not 0; a program holds them as a
(T,F) tile in registers, multiplies, and adds up over the pairs of its own text (or video) alone and in order: no
atomics, the same sums every time.
"""

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def module(name: str) -> Any:
    """A module that may not be there; no import statement, which remote code would count as required."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


triton, tl = module("triton"), module("triton.language")

FUSED_FROM = 1024**2  # pairs of texts with videos: below, the products fit in memory and cuBLAS is as good
VIDEOS, COLUMNS = 4, 64  # of one program's tile


def fused_pays(words: Tensor, frames: Tensor) -> bool:
    """Whether the kernel can run here, and there are pairs enough."""
    fits = words.dtype == frames.dtype == torch.float32 and words.shape[1] <= 128 and frames.shape[1] <= 64
    return triton is not None and words.is_cuda and fits and len(words) * len(frames) >= FUSED_FROM


class FusedInteraction(torch.autograd.Function):
    """s[a,b] = ½(Σ_m w_am max_j S_ambj + Σ_j c_bj max_m S_ambj), S = <word_am, frame_bj>; masks act before each max.

    words (Bt,T,D), frames (Bv,F,D), word_weights (Bt,T), frame_weights (Bv,F) in float32, masks -> (Bt,Bv). Weights
    are 0 outside their mask; a max goes to the first of equal ones.
    """

    @staticmethod
    def forward(ctx, words, frames, word_weights, frame_weights, word_mask, video_mask):
        inputs = [tensor.contiguous() for tensor in (words, frames, word_weights, frame_weights)]
        words, frames, word_weights, frame_weights = inputs
        (texts, length, width), (videos, number, _) = words.shape, frames.shape
        keep = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        scores = words.new_empty(texts, videos)
        frame_of_word = torch.empty(texts, videos, length, dtype=torch.int16, device=words.device)
        word_of_frame = torch.empty(texts, videos, number, dtype=torch.int16, device=words.device)
        best_frame = words.new_empty(frame_of_word.shape if keep else (1,))
        best_word = words.new_empty(word_of_frame.shape if keep else (1,))
        sizes, tile = (texts, videos, length, number, width), tile_of(length, number)
        masks = (word_mask.to(torch.int8).contiguous(), video_mask.to(torch.int8).contiguous())
        winners = (frame_of_word, word_of_frame, best_frame, best_word)
        score_pairs[texts, triton.cdiv(videos, VIDEOS)](*inputs, *masks, scores, *winners, *sizes, keep, *tile, VIDEOS)
        ctx.save_for_backward(*inputs, *winners)
        ctx.keep = keep
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        words, frames, word_weights, frame_weights, *winners = ctx.saved_tensors
        half = (grad / 2).contiguous()
        found: list[Tensor | None] = [None] * 6
        (texts, length, width), (videos, number, _) = words.shape, frames.shape
        sizes, tile = (texts, videos, length, number, width), tile_of(length, number)
        blocks = triton.cdiv(width, COLUMNS)
        if ctx.needs_input_grad[0]:
            found[0] = torch.empty_like(words)
            given = (half, frames, word_weights, frame_weights, *winners[:2], found[0])
            word_gradients[texts, blocks](*given, *sizes, *tile)
        if ctx.needs_input_grad[1]:
            found[1] = torch.empty_like(frames)
            given = (half, words, word_weights, frame_weights, *winners[:2], found[1])
            frame_gradients[videos, blocks](*given, *sizes, *tile)
        if ctx.keep:
            found[2] = torch.einsum("ab,abt->at", half, winners[2])
            found[3] = torch.einsum("ab,abf->bf", half, winners[3])
        return tuple(found)


def tile_of(length: int, number: int) -> tuple[int, int, int]:
    """Words, frames and columns of a tile: powers of two of at least 16, as a tensor core takes them."""
    return max(16, triton.next_power_of_2(length)), max(16, triton.next_power_of_2(number)), COLUMNS


if triton is not None:

    @triton.jit
    def score_pairs(
        words, frames, word_weights, frame_weights, word_mask, video_mask,
        scores, frame_of_word, word_of_frame, best_frame, best_word,
        texts, videos, length, number, width,
        KEEP: tl.constexpr, T: tl.constexpr, F: tl.constexpr, D: tl.constexpr, V: tl.constexpr,  # pyright: ignore[reportInvalidTypeForm]
    ):  # fmt: skip
        """One text with V videos."""
        text = tl.program_id(0).to(tl.int64)
        first = tl.program_id(1) * V
        t = tl.arange(0, T)
        row = tl.arange(0, V * F)
        video, f = (first + row // F).to(tl.int64), row % F
        in_text, in_video = t < length, (f < number) & (video < videos)
        place = video * number + f
        product = tl.zeros((T, V * F), dtype=tl.float32)
        for begin in range(0, width, D):
            d = begin + tl.arange(0, D)
            here = d < width
            left = tl.load(
                words + (text * length + t)[:, None] * width + d[None, :], in_text[:, None] & here[None, :], 0.0
            )
            right = tl.load(frames + place[None, :] * width + d[:, None], here[:, None] & in_video[None, :], 0.0)
            product += tl.dot(left, right, input_precision="ieee")
        seen_word = tl.load(word_mask + text * length + t, in_text, 0) != 0
        seen_frame = tl.load(video_mask + place, in_video, 0) != 0
        shown = tl.where(seen_frame[None, :], product, -float("inf")).reshape(T, V, F)
        frame_max, frame_won = tl.max(shown, axis=2, return_indices=True)
        shown = tl.where(seen_word[:, None], product, -float("inf"))
        word_max, word_won = tl.max(shown, axis=0, return_indices=True)
        by_word = tl.load(word_weights + text * length + t, in_text, 0.0)
        by_frame = tl.load(frame_weights + place, in_video, 0.0)
        total = tl.sum(tl.where(seen_word[:, None], frame_max * by_word[:, None], 0.0), axis=0)
        total += tl.sum(tl.where(seen_frame, word_max * by_frame, 0.0).reshape(V, F), axis=1)
        v = (first + tl.arange(0, V)).to(tl.int64)
        tl.store(scores + text * videos + v, total * 0.5, v < videos)
        word_place = (text * videos + v)[None, :] * length + t[:, None]
        in_words = in_text[:, None] & (v < videos)[None, :]
        # -1: nobody won, a masked word or frame has no gradient
        tl.store(frame_of_word + word_place, tl.where(seen_word[:, None], frame_won, -1).to(tl.int16), in_words)
        frame_place = (text * videos + video) * number + f
        tl.store(word_of_frame + frame_place, tl.where(seen_frame, word_won, -1).to(tl.int16), in_video)
        if KEEP:
            tl.store(best_frame + word_place, tl.where(seen_word[:, None], frame_max, 0.0), in_words)
            tl.store(best_word + frame_place, tl.where(seen_frame, word_max, 0.0), in_video)

    @triton.jit
    def pair_gradient(
        half, word_weights, frame_weights, frame_of_word, word_of_frame, text, video, videos, length, number, t, f
    ):
        """dS of one text with one video (T,F): the entries of the winners."""
        pair = text * videos + video
        frame_won = tl.load(frame_of_word + pair * length + t, t < length, -1)
        word_won = tl.load(word_of_frame + pair * number + f, f < number, -1)
        by_word = tl.load(word_weights + text * length + t, t < length, 0.0)
        by_frame = tl.load(frame_weights + video * number + f, f < number, 0.0)
        moved = tl.where(frame_won[:, None] == f[None, :], by_word[:, None], 0.0)
        moved += tl.where(word_won[None, :] == t[:, None], by_frame[None, :], 0.0)
        return moved * tl.load(half + pair)

    @triton.jit
    def word_gradients(
        half, frames, word_weights, frame_weights, frame_of_word, word_of_frame, gradients,
        texts, videos, length, number, width, T: tl.constexpr, F: tl.constexpr, D: tl.constexpr,  # pyright: ignore[reportInvalidTypeForm]
    ):  # fmt: skip
        """D columns of one text's words, summed over its videos."""
        text = tl.program_id(0).to(tl.int64)
        d = tl.program_id(1) * D + tl.arange(0, D)
        t, f = tl.arange(0, T), tl.arange(0, F)
        total = tl.zeros((T, D), dtype=tl.float32)
        for video in range(0, videos):
            moved = pair_gradient(
                half, word_weights, frame_weights, frame_of_word, word_of_frame,
                text, video, videos, length, number, t, f,
            )  # fmt: skip
            there = (f < number)[:, None] & (d < width)[None, :]
            table = tl.load(frames + (video * number + f)[:, None].to(tl.int64) * width + d[None, :], there, 0.0)
            total += tl.dot(moved, table, input_precision="ieee")
        place = (text * length + t)[:, None] * width + d[None, :]
        tl.store(gradients + place, total, (t < length)[:, None] & (d < width)[None, :])

    @triton.jit
    def frame_gradients(
        half, words, word_weights, frame_weights, frame_of_word, word_of_frame, gradients,
        texts, videos, length, number, width, T: tl.constexpr, F: tl.constexpr, D: tl.constexpr,  # pyright: ignore[reportInvalidTypeForm]
    ):  # fmt: skip
        """D columns of one video's frames, summed over the texts."""
        video = tl.program_id(0).to(tl.int64)
        d = tl.program_id(1) * D + tl.arange(0, D)
        t, f = tl.arange(0, T), tl.arange(0, F)
        total = tl.zeros((F, D), dtype=tl.float32)
        for text in range(0, texts):
            moved = pair_gradient(
                half, word_weights, frame_weights, frame_of_word, word_of_frame,
                text, video, videos, length, number, t, f,
            )  # fmt: skip
            there = (t < length)[:, None] & (d < width)[None, :]
            table = tl.load(words + (text * length + t)[:, None].to(tl.int64) * width + d[None, :], there, 0.0)
            total += tl.dot(tl.trans(moved), table, input_precision="ieee")
        place = (video * number + f)[:, None] * width + d[None, :]
        tl.store(gradients + place, total, (f < number)[:, None] & (d < width)[None, :])
