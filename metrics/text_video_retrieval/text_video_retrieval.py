"""The `evaluate` module: `evaluate.load("metrics/text_video_retrieval")`, or by its id on the Hub."""

from typing import Any

import datasets
import evaluate
import numpy as np

from .bootstrap import bootstrap_intervals
from .postprocessing import dsl
from .retrieval_metrics import retrieval_ranks, summarize_ranks

DESCRIPTION = """
Text-video retrieval in both directions: R@1, R@5, R@10, median rank, mean rank and rsum. Tied scores share their
average rank, so that a collapsed model scores at chance; several captions per video are understood; NaN is refused.
"""

INPUTS = """
Args:
    predictions: one row per text: its similarity to every video.
    references: per text, the index of its video.
    ties: "average" (default), "optimistic" or "pessimistic".
    protocol: video-to-text with several captions a video: "group_max" (default) or "individual".
    postprocessing: None or "dsl" (transductive: it looks at all test queries; say so when you report it).
    confidence: e.g. 0.95 adds `intervals`, {metric: (low, high)} from 1000 bootstrap draws of videos.
    seed: of those draws.
Returns:
    `text_to_video_R@1`, `…_R@5`, `…_R@10` and their sum `…_rsum` as fractions, `…_median_rank`, `…_mean_rank` from 1;
    the same as `video_to_text_…`.
Examples:
    >>> metric = evaluate.load("metrics/text_video_retrieval")
    >>> scores = metric.compute(predictions=[[0.9, 0.1], [0.8, 0.3]], references=[0, 1])
    >>> scores["text_to_video_R@1"], scores["video_to_text_R@1"]
    (0.5, 1.0)
"""

CITATION = """
@inproceedings{jiang2023dual,
  title = {Dual-Modal Attention-Enhanced Text-Video Retrieval with Triplet Partial Margin Contrastive Learning},
  author = {Jiang, Chen and Liu, Hong and Yu, Xuzheng and Wang, Qing and Cheng, Yuan and Xu, Jia and Liu, Zhongyi and
            Guo, Qingpei and Chu, Wei and Yang, Ming and Qi, Yuan},
  booktitle = {ACM Multimedia},
  year = {2023}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class TextVideoRetrieval(evaluate.Metric):
    """Wraps `retrieval_metrics`, which takes the matrix as an array and is the faster way from Python."""

    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("float64"),  # an integer type would make 1 of 1.5
                }
            ),
        )

    def _compute(
        self,
        predictions,
        references,
        ties="average",
        protocol="group_max",
        postprocessing=None,
        confidence=None,
        seed=0,
    ):
        if postprocessing not in (None, "dsl"):
            raise ValueError(f"postprocessing={postprocessing!r} is unknown; use None or 'dsl'")
        lengths = {len(row) for row in predictions}
        if len(lengths) > 1:
            raise ValueError(f"every text needs a score for every video; rows have {min(lengths)} to {max(lengths)}")
        similarities, gold = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        broken = next((value for value in gold if value != int(value)), None) if np.isfinite(gold).all() else np.nan
        if broken is not None:
            raise ValueError(f"references must be whole numbers (columns of the matrix), got {broken}")
        gold = gold.astype(np.int64)
        to_video, to_text = (similarities, similarities) if postprocessing is None else dsl(similarities)
        text_ranks, video_ranks = retrieval_ranks(to_video, gold, ties, protocol)
        if to_text is not to_video:
            _, video_ranks = retrieval_ranks(to_text, gold, ties, protocol)
        metrics: dict[str, Any] = {**summarize_ranks(text_ranks, video_ranks)}
        if confidence is not None:
            metrics["intervals"] = bootstrap_intervals(
                text_ranks, video_ranks, gold, summarize_ranks, confidence=confidence, seed=seed
            )
        return metrics
