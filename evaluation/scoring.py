"""From a dataset to ranks: encode every video and caption once, score all pairs with the one `similarity`."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from dmae.inference.embedding import EncodedVideos, concatenate_encoded, encode_texts, iter_videos
from dmae.metrics.text_video_retrieval.postprocessing import DSL_TEMPERATURE, QB_NORM_TEMPERATURE, QueryBank, dsl
from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_ranks, streaming_ranks
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings, similarity

TEXT_TILE = 512  # texts scored at a time against all videos; `similarity` bounds its own working memory below this
MATRIX_BYTES = 2 << 30  # above this the matrix is never whole: ranks are counted tile by tile
POSTPROCESSING = {
    None: None,
    "dsl": f"DSL (transductive: sees all test queries; τ = {DSL_TEMPERATURE:g} / score_scale)",
    "qbnorm": f"QB-Norm (inductive: bank of training queries; β = {QB_NORM_TEMPERATURE:g} / score_scale)",
}


@dataclass
class EncodedSplit:
    """A split after both encoders, in annotation order, on the CPU. Videos that did not decode are in `skipped`.

    texts: one row per caption; gold (texts,): the row of its video; video_ids: one per row of `videos`.
    """

    texts: TextEmbeddings
    videos: VideoEmbeddings
    gold: np.ndarray
    video_ids: list[str]
    skipped: list[dict]


def encode_split(
    accelerator: Accelerator, model, processor, rows, batch_size: int, num_workers: int | None, description: str
) -> EncodedSplit | None:
    """Encode `rows` ({video_id, video, captions, start, end}), shared out over the ranks; None off the main process.

    Every caption is a query. Raises ValueError when not one video decodes.
    """
    items = [{**row, "number": number} for number, row in enumerate(rows)]
    own = items[accelerator.process_index :: accelerator.num_processes]
    videos = concatenate_encoded(list(iter_videos(model, processor, own, batch_size, num_workers, description)))
    captions = [caption for item in videos.items for caption in item["captions"]]
    texts = encode_texts(model, processor, captions) if captions else None
    parts = gather_object([(videos, texts)])
    return _in_order(parts, len(items)) if accelerator.is_main_process else None


def _in_order(parts: list[tuple[EncodedVideos, TextEmbeddings | None]], num_rows: int) -> EncodedSplit:
    """The ranks' parts as one split in the order of its rows, so that results do not depend on the number of ranks."""
    videos = concatenate_encoded([videos for videos, _ in parts])
    if videos.embeddings is None:
        reason = f"; the first: {videos.skipped[0]['video_id']}: {videos.skipped[0]['error']}" if videos.skipped else ""
        raise ValueError(f"none of the {num_rows} videos can be decoded{reason}")
    order = np.argsort([item["number"] for item in videos.items])
    counts = np.array([len(item["captions"]) for item in videos.items])
    starts = np.cumsum(counts) - counts
    text_order = np.concatenate([start + np.arange(count) for start, count in zip(starts[order], counts[order])])
    return EncodedSplit(
        texts=TextEmbeddings.cat([texts for _, texts in parts if texts is not None])[text_order],
        videos=videos.embeddings[order],
        gold=np.repeat(np.arange(len(order)), counts[order]),
        video_ids=[videos.items[i]["video_id"] for i in order],
        skipped=sorted(videos.skipped, key=lambda entry: entry["video_id"]),
    )


@torch.no_grad()
def similarity_matrix(texts: TextEmbeddings, videos: VideoEmbeddings, config, device="cpu") -> np.ndarray:
    """(texts, videos) float32 similarities, computed TEXT_TILE texts at a time."""
    videos = videos.to(device)
    tiles = [
        similarity(texts[start : start + TEXT_TILE].to(device), videos, config).float().cpu()
        for start in range(0, len(texts.word_mask), TEXT_TILE)
    ]
    return torch.cat(tiles).numpy()


def tile_scorer(texts: TextEmbeddings, videos: VideoEmbeddings, config, device="cpu") -> Callable:
    """`score(rows, columns)` for `streaming_ranks`."""

    @torch.no_grad()
    def score(rows: np.ndarray, columns: slice) -> np.ndarray:
        return similarity(texts[rows].to(device), videos[columns].to(device), config).float().cpu().numpy()

    return score


@dataclass
class Scored:
    """Ranks (texts,), (videos with a text,), and two matrices (texts, videos), None where too large.

    similarities: plain; ranked: by which videos were ranked for a text, after post-processing.
    """

    text_ranks: np.ndarray
    video_ranks: np.ndarray
    similarities: np.ndarray | None
    ranked: np.ndarray | None


def score_split(
    split: EncodedSplit,
    config,
    device="cpu",
    ties: str = "average",
    protocol: str = "group_max",
    post: str | None = None,
    bank: EncodedSplit | None = None,
    matrix_bytes: int = MATRIX_BYTES,
) -> Scored:
    """Rank every caption's video and every video's captions. post: None, "dsl" or "qbnorm" (then with a `bank`)."""
    texts, videos, gold = split.texts, split.videos, split.gold
    if 4 * len(gold) * len(split.video_ids) > matrix_bytes:
        if post:
            raise ValueError(
                f"{post} needs the whole matrix, {len(gold)} x {len(split.video_ids)} similarities, which exceeds "
                f"{matrix_bytes / 2**30:.1f} GiB; evaluate without it, or on a smaller split"
            )
        score = tile_scorer(texts, videos, config, device)
        return Scored(*streaming_ranks(score, gold, len(split.video_ids), ties, protocol), None, None)
    plain = similarity_matrix(texts, videos, config, device)
    to_video = to_text = plain
    if post == "dsl":
        to_video, to_text = dsl(plain, DSL_TEMPERATURE / config.score_scale)
    elif post == "qbnorm":
        if bank is None:
            raise ValueError("post='qbnorm' normalises with a bank of training captions and videos; give it as `bank`")
        to_video = _bank(bank.texts, videos, config, device).normalize(plain)
        to_text = _bank_of_videos(bank.videos, texts, config, device).normalize(plain.T).T
    text_ranks, video_ranks = retrieval_ranks(to_video, gold, ties, protocol)
    if to_text is not to_video:
        _, video_ranks = retrieval_ranks(to_text, gold, ties, protocol)
    return Scored(text_ranks, video_ranks, plain, to_video)


def _bank(queries: TextEmbeddings, gallery: VideoEmbeddings, config, device) -> QueryBank:
    """The bank for text→video: training captions against the gallery, a tile of captions at a time."""
    starts = range(0, len(queries.word_mask), TEXT_TILE)
    tiles = (similarity_matrix(queries[start : start + TEXT_TILE], gallery, config, device) for start in starts)
    return QueryBank.build(tiles, QB_NORM_TEMPERATURE / config.score_scale)


def _bank_of_videos(queries: VideoEmbeddings, gallery: TextEmbeddings, config, device) -> QueryBank:
    """The bank for video→text: training videos against the gallery of captions."""
    starts = range(0, len(queries.video_mask), TEXT_TILE)
    tiles = (similarity_matrix(gallery, queries[start : start + TEXT_TILE], config, device).T for start in starts)
    return QueryBank.build(tiles, QB_NORM_TEMPERATURE / config.score_scale)
