"""One run of the study: fine-tune a row from a checkpoint on a world's clips, and score a split."""

import math
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from evidence_design import ROWS, Job, Row, Settings
from evidence_forms import OBJECTIVES, authors_similarity
from evidence_towers import (
    TEXT_INPUTS,
    TOWER_PARTS,
    UpperText,
    UpperVision,
    picture_states,
    study_config,
    word_states,
)
from evidence_world import FRAMES, SIZE, VOCABULARY, WORDS, Split

from dmae.data.moving_objects.corpus import SPLITS
from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_metrics
from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, similarity
from dmae.training.optimizer import make_optimizer, make_scheduler

EPOCHS, BATCH = 5, 48


@dataclass
class SeenWorld:
    """A world seen through one checkpoint: the trunks' states stand for its frames and words."""

    splits: dict[str, Split]
    pictures: dict[str, torch.Tensor]  # split: (N,F,1,1+K,H) float16
    words: torch.Tensor  # (M,H) float16, of all splits
    starts: dict[str, int]  # where a split's words begin
    device: str = "cpu"  # where models are trained and scored; what is stored stays on the CPU

    def batch(self, split: str, rows: np.ndarray, told: np.ndarray) -> dict[str, torch.Tensor]:
        """What the model takes, for some videos and one caption each; texts stay at full length, as TPM needs them."""
        texts = self.splits[split].texts
        captions, length = texts["input_ids"].shape[1:]
        place = torch.from_numpy(rows * captions + told)
        inputs = {
            "input_ids": self.starts[split] + place[:, None] * length + torch.arange(length),
            **{name: texts[name][rows, told] for name in ("attention_mask", "word_mask")},
            "word_weights": texts["word_weights"][rows, told].float(),
            "pixel_values": self.pictures[split][rows].float(),
            "video_mask": torch.ones(len(rows), FRAMES, dtype=torch.bool),
            "video_ids": torch.from_numpy(rows),
            "caption_ids": torch.from_numpy(rows),
        }
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}


def see(splits: dict[str, Split], towers: dict, splits_wanted=SPLITS, device: str = "cpu") -> SeenWorld:
    """Run the frozen trunks of a checkpoint over a world."""
    model = build_towers(towers)
    pictures, words, starts, rows = {}, [], {}, 0
    for name in splits_wanted:
        pictures[name] = picture_states(model.vision_model, splits[name].frames)
        states = word_states(model.text_model, splits[name].texts["input_ids"])
        starts[name], rows = rows, rows + states[..., 0].numel()
        words.append(states.flatten(0, -2))
    return SeenWorld(splits, pictures, torch.cat(words), starts, device)


def build_towers(towers: dict, **words) -> DMAEForTextVideoRetrieval:
    """A model of the study with a checkpoint's towers."""
    model = DMAEForTextVideoRetrieval(study_config(SIZE, FRAMES, WORDS, VOCABULARY, **words))
    for part in TOWER_PARTS:
        getattr(model, part).load_state_dict(towers[part])
    return model.eval()


def options_of(settings: Settings) -> SimpleNamespace:
    """The optimiser's settings, those of the recipes for real datasets but for the rates."""
    return SimpleNamespace(
        learning_rate=settings.new_rate,
        clip_learning_rate=settings.tower_rate,
        weight_decay=0.2,
        adam_beta1=0.9,
        adam_beta2=0.98,
        adam_epsilon=1e-8,
        optim="adamw",
        lr_scheduler_type="cosine",
        warmup_ratio=0.1,
        max_grad_norm=1.0,
    )


def build_model(words: dict, towers: dict, table: torch.Tensor, start_scale: float, seed: int):
    """A row's model above the trunks; what is new starts from `seed`, equally in all rows."""
    torch.manual_seed(seed)
    model = build_towers(towers, **words)
    model.logit_scale.data.fill_(math.log(start_scale))
    model.vision_model = UpperVision(model.vision_model)
    model.text_model = UpperText(model.text_model, table)
    return model


def study_parameters() -> dict[str, int]:
    """How many parameters "towers" have, how many of them a run trains ("upper"), and "new" ones with all parts on."""
    row = next(row for row in ROWS.values() if all(row.factors.values()))
    whole = DMAEForTextVideoRetrieval(study_config(SIZE, FRAMES, WORDS, VOCABULARY, **dict(row.model)))
    upper = (UpperVision(whole.vision_model), UpperText(whole.text_model, torch.empty(0)))

    def count(*parts: torch.nn.Module) -> int:
        return sum(parameter.numel() for part in parts for parameter in part.parameters())

    towers = count(*(getattr(whole, part) for part in TOWER_PARTS))
    above = count(*upper, whole.text_projection, whole.visual_projection)
    return {"towers": towers, "upper": above, "new": count(whole) - towers}


def epoch_batches(families: np.ndarray, captions: int, seed: int, epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches of (videos, which of their captions): families of near misses stay together, all else is shuffled."""
    rng = np.random.default_rng([seed, epoch, 17])
    turn = rng.permutation(families.max() + 1)
    order = np.lexsort((rng.random(len(families)), turn[families]))
    told = rng.integers(captions, size=len(families))
    return [(order[i : i + BATCH], told[order[i : i + BATCH]]) for i in range(0, len(order) - BATCH + 1, BATCH)]


def fine_tune(row: Row, job: Job, towers: dict, world: SeenWorld, epochs: int = EPOCHS) -> tuple[torch.nn.Module, list]:
    """Train on the world's training clips. -> the model and the losses of each epoch's last step."""
    split, words = world.splits["train"], {**dict(row.model), **dict(job.model)}
    model = build_model(words, towers, world.words, job.settings.start_scale, job.seed).to(world.device).train()
    objective = OBJECTIVES[row.form](model)
    options = options_of(job.settings)
    optimizer = make_optimizer(model, options)
    captions = split.texts["input_ids"].shape[1]
    epochs_of_batches = [epoch_batches(split.families, captions, job.seed, epoch) for epoch in range(epochs)]
    total = sum(map(len, epochs_of_batches))
    schedule = make_scheduler(optimizer, options, total)
    trace, step = [], 0
    for batches in epochs_of_batches:
        for rows, told in batches:
            objective.progress = step / total
            terms = objective(**world.batch("train", rows, told))
            terms["loss"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            model.clamp_logit_scale()
            step += 1
        trace.append({name: round(value.item(), 4) for name, value in terms.items()})
    return model.eval(), trace


@torch.no_grad()
def score(model, row: Row, world: SeenWorld, split: str) -> np.ndarray:
    """Similarities of every video's (first) caption with every video, (N,N)."""
    rows = np.arange(len(world.splits[split]))
    batch = world.batch(split, rows, np.zeros_like(rows))
    text = model.get_text_features(**{name: batch[name] for name in TEXT_INPUTS})
    video = model.get_video_features(batch["pixel_values"], batch["video_mask"])
    if row.form != "authors":
        return similarity(text, video, model.config).cpu().numpy()
    parts = [
        authors_similarity(TextEmbeddings(*(part[i : i + 64] for part in text)), video, model.config)
        for i in range(0, len(rows), 64)
    ]
    return torch.cat(parts).cpu().numpy()


def measures(scores: np.ndarray, split: Split) -> dict[str, float]:
    """rsum and recalls in percent, mean log-rank both ways, and the share of near misses told apart."""
    found = retrieval_metrics(scores, np.arange(len(scores)))
    result = {}
    for way, matrix in (("text_to_video", scores), ("video_to_text", scores.T)):
        own = matrix.diagonal()[:, None]
        ranks = 1 + (matrix > own).sum(1) + ((matrix == own).sum(1) - 1) / 2
        result[f"{way}_log_rank"] = round(float(np.log(ranks).mean()), 5)
        for name in ("R@1", "R@5", "R@10", "rsum"):
            result[f"{way}_{name}"] = round(100 * found[f"{way}_{name}"], 4)
    wins: dict[str, list[float]] = {}
    for one, other, attribute in split.near_misses:
        gap = scores[one, one] - scores[one, other]
        wins.setdefault(attribute, []).append(float(gap > 0) + 0.5 * float(gap == 0))
    result |= {f"near_miss_{name}": round(100 * float(np.mean(values)), 4) for name, values in sorted(wins.items())}
    return result


def run(row: Row, job: Job, towers: dict, world: SeenWorld) -> dict:
    """Train and score: the whole line of a run but for where it was run."""
    started = time.process_time()
    model, trace = fine_tune(row, job, towers, world, 0 if job.part == "untuned" else EPOCHS)
    trained = time.process_time()
    metrics = measures(score(model, row, world, job.split), world.splits[job.split])
    return {
        "metrics": metrics,
        "last_step": trace[-1] if trace else {},
        "cpu_seconds": {"training": round(trained - started, 2), "scoring": round(time.process_time() - trained, 2)},
    }
