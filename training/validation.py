"""R@K both ways on the validation split during training, by the code that `dmae evaluate` runs."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from dmae.evaluation.scoring import encode_split, score_split
from dmae.metrics.text_video_retrieval.retrieval_metrics import summarize_ranks


def validate(accelerator: Accelerator, model, processor, rows, batch_size: int, num_workers: int) -> dict:
    """{"metrics": R@K …, "videos": n, "texts": n, "skipped": [{"video_id", "path", "error"}, …]}, on every rank.

    Every caption is a query. Rows whose video cannot be decoded are left out with their captions, and named.
    """
    # Loaders draw worker seeds from the global generator; a run resumed at another moment must not notice.
    with torch.random.fork_rng(devices=[]), accelerator.autocast():
        split = encode_split(accelerator, model, processor, rows, batch_size, num_workers, "validation")
    model.train()
    result: Any = None
    if split is not None:
        scored = score_split(split, model.config, accelerator.device)
        metrics = summarize_ranks(scored.text_ranks, scored.video_ranks)
        sizes = {"videos": len(split.video_ids), "texts": len(split.gold)}
        result = {"metrics": metrics, **sizes, "skipped": split.skipped}
    return broadcast_object_list([result])[0] if accelerator.num_processes > 1 else result


def told(metrics: dict[str, float], sizes: dict[str, int], skipped: list[str]) -> str:
    """One line for the terminal: the recalls both ways, of how many texts and videos. sizes: {"texts", "videos"}."""
    recalls = ", ".join(
        f"{name} R@1 {metrics[f'{side}_R@1']:.1%} R@10 {metrics[f'{side}_R@10']:.1%}"
        for name, side in [("text→video", "text_to_video"), ("video→text", "video_to_text")]
    )
    broken = f", {len(skipped)} more could not be decoded" if skipped else ""
    return f"{recalls} ({sizes['texts']} texts, {sizes['videos']} videos{broken})"
