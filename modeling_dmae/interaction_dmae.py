"""The max-interaction kernels: exact in value and gradient, without the (Bt,Bv,T,F) intermediate and without padding.

`max_scores` gives values alone, in chunks of videos and texts; `MaxInteraction` is what gradients need. Words are
packed: only valid ones are multiplied, sorted by the length of their text so that texts of one length form a dense
block. MaxInteraction's forward keeps which frame (word) won each max; its backward is in `max_gradients_dmae.py`.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .max_gradients_dmae import Winners, dense_gradients, sparse_gradients

DEFAULT_CHUNK_BYTES = 32 * 2**20
LEARNING_BYTES = 8 * 2**20  # of products at a time where gradients are wanted: cuts the cost of maxima, not of products
VIDEO_CHUNK = 2048  # videos scored at a time: the products of a query with them stay in cache
FEW_WORDS = 64  # up to so many, one thin product of all frames beats a product for each frame
FEW_CHUNK = 512  # videos of a thin product: its 0.4 MB, with 17 words and 12 frames, stay in cache to the last maximum
WIDEN_BYTES = 4 * 2**20  # narrow frames widened at a time, into the same memory: new memory costs more than the copy
FEW_BYTES = 2**20  # as few before a thin product, which reads them only once: from cache


def max_scores(
    words, frames, word_weights, frame_weights, word_mask, video_mask, chunk_bytes, sentences=None
) -> Tensor:
    """MaxInteraction's values without a gradient; frames in any float type. -> (Bt,Bv).

    sentences (Bt,D): the score of each as a text of one token is averaged in, from the same product. Working memory is
    about `chunk_bytes`, one text with one video at least; nothing as large as `frames` is made.
    """
    places, starts, lengths, order = pack(word_mask)
    packed, weights = words.flatten(0, 1)[places], word_weights.flatten()[places]
    sentences = words.new_empty(len(order), 0, words.shape[2]) if sentences is None else sentences[order, None]
    number, width = frames.shape[1:]
    row_bytes = 2 * number * packed.element_size()  # of one word with one video: the product, and a masked copy
    frame_bytes = number * width * packed.element_size()  # of one video, widened
    video_bytes = row_bytes * (max(lengths, default=0) + sentences.shape[1]) + frame_bytes
    few = len(packed) + sentences.shape[0] * sentences.shape[1] <= FEW_WORDS
    step, widened = max(1, min(FEW_CHUNK if few else VIDEO_CHUNK, chunk_bytes // video_bytes)), None
    if frames.dtype != packed.dtype:
        fitting = max(1, (FEW_BYTES if few else WIDEN_BYTES) // frame_bytes)
        widened = packed.new_empty(min(step, fitting, len(frames)), number, width)
        step = step if few else min(step, fitting)
    most_words, scores = chunk_bytes // (step * row_bytes), packed.new_empty(len(order), len(frames))
    for begin in range(0, len(frames), step):
        videos = slice(begin, begin + step)
        part, mask, share = frames[videos], video_mask[videos], frame_weights[videos]
        hidden = None if bool(mask.all()) else ~mask
        part = part if few else wide_frames(part, hidden, widened)
        for first, last, length in equal_lengths(lengths, most_words):
            rows, texts = slice(starts[first], starts[first] + (last - first) * length), slice(first, last)
            queries = torch.cat([packed[rows], sentences[texts].flatten(0, 1)])
            of_words = weights[rows].view(-1, length)
            if few:
                product = thin_product(queries, part, hidden, widened)
                scores[texts, videos] = reduce_thin_product(product, of_words, share, hidden)
            else:
                scores[texts, videos] = reduce_product(queries, part, of_words, share, hidden)
    return scores if len(order) == 1 else torch.empty_like(scores).index_copy_(0, order, scores)


def wide_frames(frames, hidden, widened) -> Tensor:
    """Frames in the words' type, in the memory `widened` where they are narrower, those that are hidden 0."""
    if widened is None:
        return frames if hidden is None else frames.masked_fill(hidden[..., None], 0.0)
    frames = widened[: len(frames)].copy_(frames)
    return frames if hidden is None else frames.masked_fill_(hidden[..., None], 0.0)


def thin_product(queries, frames, hidden, widened) -> Tensor:
    """Products of all frames (V,F,D) with few queries (N,D). -> (V,F,N). Narrow ones are widened piece by piece."""
    columns = queries.T.contiguous()
    if widened is None:
        return wide_frames(frames, hidden, None) @ columns
    product = queries.new_empty(*frames.shape[:2], len(queries))
    for start in range(0, len(frames), len(widened)):
        piece = slice(start, start + len(widened))
        part = wide_frames(frames[piece], None if hidden is None else hidden[piece], widened)
        torch.mm(part.flatten(0, 1), columns, out=product[piece].flatten(0, 1))
    return product


def reduce_product(queries, frames, word_weights, frame_weights, hidden) -> Tensor:
    """Scores (A,V) of A texts of T words, weights (A,T), and where queries (A·T+A,D) go on with them their sentences
    averaged in; frames (V,F,D), weights (V,F), hidden frames (V,F) or None."""
    # frames before videos, so that both maxima run along whole rows and not over neighbours
    product = torch.bmm(queries.expand(frames.shape[1], -1, -1), frames.permute(1, 2, 0))
    share, words = frame_weights.T, word_weights.numel()
    by_word = _reduce(product[:, :words], word_weights, share, hidden)
    if words == len(queries):
        return by_word
    return (by_word + _reduce(product[:, words:], by_word.new_ones(len(by_word), 1), share, hidden)) / 2


def _reduce(product, word_weights, frame_weights, hidden) -> Tensor:
    """Products (F, A·T, V) of A texts of T words, weights (A,T) and (F,V), hidden frames (V,F) or None -> (A,V)."""
    texts, length = word_weights.shape
    frame_max = (product if hidden is None else product.masked_fill(hidden.T[:, None], -torch.inf)).amax(0)
    word_max = product.unflatten(1, (texts, length)).amax(2)
    by_word = torch.einsum("at,atv->av", word_weights, frame_max.view(texts, length, -1))
    return (by_word + (word_max * frame_weights[:, None]).sum(0)) / 2


def reduce_thin_product(product, word_weights, frame_weights, hidden) -> Tensor:
    """`reduce_product` of products (V, F, A·T+A), a video's frames together."""
    texts, length = word_weights.shape
    words = texts * length
    frame_max = (product if hidden is None else product.masked_fill(hidden[..., None], -torch.inf)).amax(1)
    word_max = product[..., :words].unflatten(2, (texts, length)).amax(3)
    by_word = (frame_max[:, :words].unflatten(1, (texts, length)) * word_weights).sum(2)
    score = by_word + torch.bmm(frame_weights[:, None], word_max)[:, 0]
    if words < product.shape[2]:
        alone = frame_max[:, words:] + torch.bmm(frame_weights[:, None], product[..., words:])[:, 0]
        score = (score + alone) / 2
    return score.T / 2


class MaxInteraction(torch.autograd.Function):
    """s[a,b] = ½(Σ_m w_am max_j S_ambj + Σ_j c_bj max_m S_ambj), S = <word_am, frame_bj>; masks act before each max.

    words (Bt,T,D), frames (Bv,F,D), word_weights (Bt,T), frame_weights (Bv,F), masks, chunk_bytes -> (Bt,Bv).
    """

    @staticmethod
    def forward(ctx, words, frames, word_weights, frame_weights, word_mask, video_mask, chunk_bytes):
        places, starts, lengths, order = pack(word_mask)
        packed, weights = words.flatten(0, 1)[places], word_weights.flatten()[places]
        videos, number, _ = frames.shape
        frame_of_word = torch.empty(len(places), videos, dtype=place_type(number), device=words.device)
        word_of_frame = torch.empty(
            len(order), number, videos, dtype=place_type(word_mask.shape[1]), device=words.device
        )
        learns_weights = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        maxima = [packed.new_empty(won.shape) for won in (frame_of_word, word_of_frame) if learns_weights]
        scores, share = packed.new_empty(len(order), videos), frame_weights.T.contiguous()
        hidden = None if bool(video_mask.all()) else ~video_mask.T
        # frames before videos, so that both maxima run along whole rows and not over neighbours
        table = frames.transpose(0, 1).flatten(0, 1)
        chunk_bytes = min(chunk_bytes, LEARNING_BYTES) if words.device.type == "cpu" else chunk_bytes
        bytes_per_word = 2 * packed.element_size() * videos * number  # the products, and what finds their maxima
        for first, last, length in equal_lengths(lengths, chunk_bytes // bytes_per_word):
            rows, texts = slice(starts[first], starts[first] + (last - first) * length), slice(first, last)
            product = (packed[rows] @ table.T).view(-1, length, number, videos)
            word_max, word_of_frame[texts] = first_max(product, 1)
            shown = product if hidden is None else product.masked_fill_(hidden, -torch.inf)
            frame_max, frame_won = first_max(shown, 2)
            frame_of_word[rows] = frame_won.flatten(0, 1)
            by_word = torch.einsum("at,atb->ab", weights[rows].view(-1, length), frame_max)
            scores[texts] = (by_word + (word_max * share).sum(1)) / 2
            if maxima:
                maxima[0][rows], maxima[1][texts] = frame_max.flatten(0, 1), word_max
        ctx.save_for_backward(packed, frames, weights, frame_weights, frame_of_word, word_of_frame, places, order)
        ctx.maxima, ctx.lengths, ctx.word_shape = maxima, lengths, words.shape
        return torch.empty_like(scores).index_copy_(0, order, scores)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        packed, frames, weights, frame_weights, frame_of_word, word_of_frame, places, order = ctx.saved_tensors
        half = grad[order] / 2
        lengths = torch.tensor(ctx.lengths, device=packed.device)
        winners = Winners(half, lengths, weights, frame_weights, frame_of_word, word_of_frame)
        product = sparse_gradients if packed.device.type == "cpu" else dense_gradients
        grad_packed, grad_frames = product(winners, packed, frames, ctx.lengths)
        grad_words = unpack(grad_packed, places, ctx.word_shape)
        grad_word_weights = grad_frame_weights = None
        if ctx.maxima:
            best_frame, best_word = ctx.maxima
            by_word = (half[winners.text_of_word] * best_frame).sum(1)
            grad_word_weights = unpack(by_word, places, ctx.word_shape[:2])
            grad_frame_weights = torch.einsum("ab,afb->bf", half, best_word)
        return grad_words, grad_frames, grad_word_weights, grad_frame_weights, None, None, None


def place_type(count: int) -> torch.dtype:
    """The smallest integers that hold `count` places."""
    return torch.uint8 if count <= 256 else torch.int16


def first_max(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """`values.max(dim)`, the first of equal ones winning; places in `place_type`. Where there is NaN, any place."""
    if values.device.type != "cpu":
        return values.max(dim)
    # torch's maximum with places goes number by number on a CPU; these passes are vectorised (>= more so than ==)
    best, count = values.amax(dim, keepdim=True), values.shape[dim]
    countdown = torch.arange(count - 1, -1, -1, dtype=place_type(count))
    countdown = countdown.view(-1, *[1] * (values.dim() - dim - 1))
    left = ((values >= best).view(torch.uint8) * countdown).amax(dim)
    return best.squeeze(dim), count - 1 - left


def pack(mask: Tensor) -> tuple[Tensor, list[int], list[int], Tensor]:
    """Where the valid words are, texts sorted by length: flat places (N,), each text's start, its length, the order."""
    if len(mask) == 1:  # a query: a third of the operations
        places = mask[0].nonzero()[:, 0]
        return places, [0], [len(places)], places.new_zeros(1)
    lengths, order = mask.sum(1).sort(stable=True)
    positions = torch.arange(mask.numel(), device=mask.device).view_as(mask)
    starts = lengths.cumsum(0) - lengths
    return positions[order][mask[order]], starts.tolist(), lengths.tolist(), order


def unpack(packed: Tensor, places: Tensor, shape) -> Tensor:
    """Packed rows back at their places, 0 elsewhere."""
    flat = packed.new_zeros(shape[0] * shape[1], *shape[2:])
    return flat.index_copy_(0, places, packed).view(shape)


def equal_lengths(lengths: list[int], most_words: int):
    """Runs (first, last, length) of equally long texts, of at most `most_words` words, but one text at least."""
    first = 0
    while first < len(lengths):
        length, last = lengths[first], first + 1
        while last < len(lengths) and lengths[last] == length and (last + 1 - first) * length <= most_words:
            last += 1
        yield first, last, length
        first = last
