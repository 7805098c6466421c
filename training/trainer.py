"""What transformers' `Trainer` needs beside model and processor: a collator, upkeep between steps, R@K over the split.

The project's own loop (`dmae train`) is what the results were made with: it gathers negatives over ranks, caches frames
and resumes bit-exactly. This is for those who have a Trainer already; docs/how_to/trainer.md shows it whole.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from dmae.evaluation.scoring import similarity_matrix
from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_metrics
from dmae.modeling_dmae.embeddings_dmae import TextEmbeddings, VideoEmbeddings


def collator(processor) -> Callable[[Sequence[dict]], dict]:
    """rows {"caption", "video", "video_id" (int)} -> a batch with `video_ids`: captions of one video are no negatives.

    Give the Trainer `remove_unused_columns=False`, so that the rows arrive here, and `label_names=["video_ids"]`.
    """

    def collate(rows: Sequence[dict]) -> dict:
        batch = processor(
            text=[row["caption"] for row in rows], videos=[row["video"] for row in rows], return_tensors="pt"
        )
        return {**batch, "video_ids": torch.tensor([row["video_id"] for row in rows])}

    return collate


class ModelUpkeep(TrainerCallback):
    """After every step the temperature is kept in bounds (docs/method.md §5) and the model told how far training is."""

    def on_train_begin(self, args, state, control, model: Any, **kwargs):
        self._tell(state, model)

    def on_step_end(self, args, state, control, model: Any, **kwargs):
        model.clamp_logit_scale()
        self._tell(state, model)

    @staticmethod
    def _tell(state, model) -> None:
        model.progress = state.global_step / max(state.max_steps, 1)


def metrics_over_the_split(config) -> Callable:
    """A Trainer's `compute_metrics`: every caption against every video of the split, by the one similarity.

    Reads the embeddings of the model's output (`DMAEConfig.keys_to_ignore_at_inference` leaves out the rest) and the
    video ids that `label_names=["video_ids"]` hands on. -> "text_to_video_R@1" … as fractions.
    """

    def compute(prediction) -> dict[str, float]:
        tensors = [torch.from_numpy(np.asarray(array)) for array in prediction.predictions]
        _, first, gold = np.unique(prediction.label_ids, return_index=True, return_inverse=True)
        texts, videos = TextEmbeddings.of(tensors), VideoEmbeddings.of(tensors[len(TextEmbeddings.names()) :])[first]
        scores = similarity_matrix(texts, videos, config)
        return retrieval_metrics(scores, gold)

    return compute
