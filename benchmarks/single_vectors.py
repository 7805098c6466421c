"""What a single vector or a one-way MaxSim loses beside the model's own score: R@1 on the demo's test split.

    dmae demo --output-dir outputs/demo && python benchmarks/single_vectors.py outputs/demo

Writes benchmarks/results/single_vectors.json. Pooled: cosine of the sentence and the mean frame, what
sentence-transformers and other single-vector stores see. MaxSim: every word's best frame, summed, what late-interaction
libraries compute from the same embeddings.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from dmae.data.registry import load_dataset
from dmae.evaluation.scoring import encode_split, similarity_matrix
from dmae.inference.conditions import code_version, hardware
from dmae.inference.identity import describe_model
from dmae.inference.loading import load_model_and_processor
from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_metrics
from dmae.modeling_dmae.vectors_dmae import masked_mean_direction, unit

SHOWN = ("text_to_video_R@1", "text_to_video_R@5", "text_to_video_median_rank", "video_to_text_R@1")


def pooled(texts, videos) -> torch.Tensor:
    return texts.sentence_embeds @ masked_mean_direction(videos.video_embeds, videos.video_mask).T


def max_sim(texts, videos) -> torch.Tensor:
    frames, columns = unit(videos.video_embeds), []
    for frame, mask in zip(frames, videos.video_mask):  # a video at a time: words x frames of all pairs are many
        best = (texts.word_embeds @ frame[mask].T).amax(-1)
        columns.append(torch.where(texts.word_mask, best, 0.0).sum(-1))
    return torch.stack(columns, 1)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="the output folder of `dmae demo`")
    demo = parser.parse_args().demo
    model, processor = load_model_and_processor(demo / "model", device="cpu", dtype="float32")
    split = load_dataset("videofolder", annotations=None, videos=str(demo / "corpus"), split="test")
    encoded = encode_split(Accelerator(cpu=True), model, processor, split.dataset, 16, 0, "videos")
    exact = similarity_matrix(encoded.texts, encoded.videos, model.config)
    scores = {"exact": exact, "pooled": pooled(encoded.texts, encoded.videos)}
    scores["max_sim"] = max_sim(encoded.texts, encoded.videos)
    rows = {}
    for name, matrix in scores.items():
        found = retrieval_metrics(np.asarray(matrix, dtype=np.float64), encoded.gold)
        rows[name] = {metric: round(float(found[metric]), 4) for metric in SHOWN}
        print(name, rows[name])
    conditions = {"videos": len(encoded.video_ids), "texts": len(encoded.gold), "corpus": "MovingDigits, test"}
    conditions |= {"interaction": model.config.interaction, "weights": describe_model(model, processor)["weights"]}
    conditions |= {**hardware(torch.device("cpu")), "code": code_version()}
    result = {"conditions": conditions, "rows": rows}
    Path(__file__).with_name("results").joinpath("single_vectors.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
