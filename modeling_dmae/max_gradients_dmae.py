"""The gradients of `MaxInteraction`: that of a max moves one entry, so Bt·Bv·(T+F) of the Bt·Bv·T·F entries of dS are
not 0. `Winners` names them, tile by tile; they are summed up sparse on a CPU and dense on a GPU.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

TILE_ROWS = 2048  # words and frames per backward tile: with 64 columns a table stays in a core's cache
TILE_COLUMNS = 64


class Winners:
    """The entries of dS that are not 0, tile by tile: who won each max, and with what gradient."""

    def __init__(self, half, lengths, weights, frame_weights, frame_of_word, word_of_frame):
        self.half, self.weights, self.frame_weights = half, weights, frame_weights
        self.frame_of_word, self.word_of_frame = frame_of_word, word_of_frame
        self.starts = lengths.cumsum(0) - lengths
        self.text_of_word = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)

    def by_word(self, rows: slice, videos: slice) -> tuple[Tensor, Tensor]:
        """Which frame of each video a word chose, and its gradient. -> two (words, videos)."""
        return self.frame_of_word[rows, videos], self.half[self.text_of_word[rows], videos] * self.weights[rows, None]

    def by_frame(self, texts: slice, videos: slice) -> tuple[Tensor, Tensor]:
        """Which word of each text a frame chose, and its gradient. -> two (texts, F, videos)."""
        return self.word_of_frame[texts, :, videos], self.half[texts, None, videos] * self.frame_weights[videos].T


def tiles(lengths: list[int], videos: int, number: int, tile_rows: int):
    """Slices (texts, their words, videos) of about `tile_rows` words by `tile_rows` frames."""
    step = max(1, tile_rows // number)
    first = begin = 0
    while first < len(lengths):
        last, end = first, begin
        while last < len(lengths) and (last == first or end + lengths[last] - begin <= tile_rows):
            end, last = end + lengths[last], last + 1
        for start in range(0, videos, step):
            yield slice(first, last), slice(begin, end), slice(start, min(start + step, videos))
        first, begin = last, end


def sparse_gradients(winners: Winners, words: Tensor, frames: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """(N,D), (Bv,F,D) gradients as sums over winners only: 44 instead of 384 entries per pair at T=32, F=12 (CPU)."""
    grad_words, grad_frames = torch.zeros_like(words), frames.new_zeros(frames.shape)
    videos, number, _ = frames.shape
    for texts, rows, span in tiles(lengths, videos, number, TILE_ROWS):
        word_table, frame_table = columns_of(words[rows]), columns_of(frames[span].transpose(0, 1).flatten(0, 1))
        frame_won, word_grad = winners.by_word(rows, span)
        word_won, frame_grad = winners.by_frame(texts, span)
        many, starts = frame_won.shape[1], winners.starts[texts] - rows.start
        # words <- frames: each word's choices lie together; the frames' choices are brought together by word
        chosen = frame_won.int() * many + torch.arange(many, dtype=torch.int32)
        lists = lines(chosen, word_grad), grouped(word_won.flatten(1), frame_grad.flatten(1), starts, len(frame_won))
        add_bags(grad_words[rows], frame_table, lists)
        # frames <- words: the same two lists the other way round
        chosen = (word_won + starts[:, None, None]).permute(2, 1, 0).flatten(0, 1)
        lists = (
            lines(chosen, frame_grad.permute(2, 1, 0).flatten(0, 1)),
            grouped(frame_won.T.contiguous(), word_grad.T.contiguous(), number * torch.arange(many), many * number),
        )
        add_bags(grad_frames[span].flatten(0, 1), word_table, lists)
    return grad_words, grad_frames


def columns_of(table: Tensor) -> list[Tensor]:
    """A table in strips: embedding_bag then keeps its sums in registers and its table in cache (3x on 512 columns)."""
    return [part.contiguous() for part in table.split(TILE_COLUMNS, 1)]


def lines(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Line i of `rows` and `values` (n,k) is bag i. -> rows, values and where each bag begins."""
    return rows.flatten(), values.flatten(), torch.arange(0, rows.numel(), rows.shape[1])


def grouped(keys: Tensor, values: Tensor, first_bags: Tensor, bags: int) -> tuple[Tensor, Tensor, Tensor]:
    """Entry k of line i, (n,k), goes to bag first_bags[i] + keys[i,k] and stands for row k. As `lines`.

    A line's bags follow on those of the line before. numpy sorts such narrow keys by radix, 8 bits in one pass.
    """
    order = torch.from_numpy(np.argsort(keys.numpy(), axis=1, kind="stable"))
    counts = torch.bincount((keys + first_bags[:, None]).flatten(), minlength=bags)
    return order.flatten(), values.gather(1, order).flatten(), counts.cumsum(0) - counts


def add_bags(total: Tensor, strips: list[Tensor], lists) -> None:
    """total[i] += Σ values·table[rows] over bag i of every (rows, values, offsets) of `lists`; strips of the table."""
    first = 0
    for strip in strips:
        found = [
            F.embedding_bag(rows, strip, offsets.to(rows.dtype), mode="sum", per_sample_weights=values)
            for rows, values, offsets in lists
        ]
        total[:, first : first + strip.shape[1]] += found[0].add_(found[1])
        first += strip.shape[1]


def dense_gradients(winners: Winners, words: Tensor, frames: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """The same by dense products of one tile of dS at a time, which suits a GPU."""
    grad_words, grad_frames = torch.zeros_like(words), frames.new_zeros(frames.shape)
    videos, number, _ = frames.shape
    for texts, rows, span in tiles(lengths, videos, number, 8 * TILE_ROWS):
        table = frames[span].transpose(0, 1).flatten(0, 1)
        frame_won, word_grad = winners.by_word(rows, span)
        word_won, frame_grad = winners.by_frame(texts, span)
        moved, many = words.new_zeros(len(frame_won), len(table)), frame_won.shape[1]
        moved.scatter_(1, frame_won.long() * many + torch.arange(many, device=moved.device), word_grad)
        word_rows = word_won.flatten(1) + (winners.starts[texts] - rows.start)[:, None]
        places = word_rows * len(table) + torch.arange(len(table), device=moved.device)
        moved.view(-1).index_add_(0, places.flatten(), frame_grad.flatten())
        grad_words[rows] += moved @ table
        grad_frames[span] += (moved.T @ words[rows]).view(number, many, -1).transpose(0, 1)
    return grad_words, grad_frames
