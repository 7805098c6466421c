"""`dmae evaluate`: a model by name on a dataset by name, from loading to results.json."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from dmae.data import videofolder
from dmae.data.clips import LoadedSplit, stable_id
from dmae.data.listing import metadata_in
from dmae.data.registry import DatasetLocation, load_dataset, locate
from dmae.evaluation.cache import cached_encode_split, hash_text
from dmae.evaluation.pictures import write_pictures
from dmae.evaluation.queries import write_queries
from dmae.evaluation.results import Results, check_same_protocol, compare, named_benchmark
from dmae.evaluation.scoring import POSTPROCESSING, EncodedSplit, Scored, score_split
from dmae.inference.conditions import code_version, hardware
from dmae.inference.identity import describe_model
from dmae.inference.loading import load_model_and_processor
from dmae.metrics.text_video_retrieval.bootstrap import bootstrap_intervals
from dmae.metrics.text_video_retrieval.retrieval_metrics import PROTOCOLS, TIES, summarize_ranks


@dataclass
class EvaluationOptions:
    """How to evaluate. split None: "test", or everything where one's own data is undivided."""

    split: str | None = None
    protocol: str = "group_max"
    ties: str = "average"
    post: str | None = None
    bank_split: str = "train"  # QB-Norm's bank: this many of its videos, with their captions
    bank_videos: int = 1000
    batch_size: int = 16
    num_workers: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    samples: int = 1000  # bootstrap draws; 0: no intervals
    confidence: float = 0.95
    seed: int = 0  # of the bootstrap
    benchmark: str | None = None  # ID or ID:TASK, where the split is a benchmark that the Hub knows

    def check(self) -> None:
        named_benchmark(self.benchmark, "")
        for name, valid in (("protocol", PROTOCOLS), ("ties", TIES), ("post", POSTPROCESSING)):
            if getattr(self, name) not in valid:
                words = ", ".join(word for word in valid if word)
                raise ValueError(f"{name} {getattr(self, name)!r} is not a choice; valid: {words}")
        if self.samples == 1 or self.samples < 0:
            raise ValueError(f"samples={self.samples}: an interval needs at least 2 draws, better 1000; 0 makes none")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence={self.confidence} must lie between 0 and 1, e.g. 0.95")


def evaluate_model(
    model: str,
    dataset: DatasetLocation,
    output: Path,
    options: EvaluationOptions,
    cache: Path | None = None,
    other: Path | None = None,
    pictures: bool = False,
    per_query: Path | None = None,
) -> tuple[dict, dict | None] | None:
    """Evaluate, write `output`, and return (record, comparison with `other` or None); None off the main process.

    Checks everything that can be checked before it encodes; a comparison is refused as soon as protocols are known to
    differ.
    """
    started = time.monotonic()
    options.check()
    theirs = Results.read(other) if other else None
    split, bank = split_and_bank(dataset, options)
    data = {**split.report, "dataset": _dataset_name(dataset, split.report)}
    known = {"data": {name: data[name] for name in ("dataset", "split")}, **_protocol(options)}
    if theirs:
        check_same_protocol(known, theirs.record, known_only=True)

    accelerator = Accelerator(cpu=options.device == "cpu")
    device = str(accelerator.device) if options.device == "auto" else options.device
    network, processor = load_model_and_processor(model, device, options.dtype)

    def encode(rows, description: str) -> Any:  # an EncodedSplit on the main process
        return cached_encode_split(
            accelerator, cache, network, processor, rows, options.batch_size, options.num_workers, description
        )

    encoded, encoded_bank = encode(split.dataset, "videos"), encode(bank, "bank") if bank else None
    result = None
    if accelerator.is_main_process:
        how = {"ties": options.ties, "protocol": options.protocol, "post": options.post}
        scored = score_split(encoded, network.config, device, bank=encoded_bank, **how)
        ranked = set(encoded.video_ids)
        captions = [caption for row in split.dataset if row["video_id"] in ranked for caption in row["captions"]]
        record = {
            "metrics": summarize_ranks(scored.text_ranks, scored.video_ranks),
            **known,
            **_intervals(scored, encoded.gold, options),
            "model": {**describe_model(network, processor), "name": model},
            "data": {
                **data,
                **_what_was_ranked(encoded, captions, processor),
                **named_benchmark(options.benchmark, "text_to_video_R@1"),
            },
            **_conditions(accelerator, network, model, options, encoded_bank),
            "seconds": round(time.monotonic() - started, 1),
        }
        ours = Results(record, _arrays(encoded, captions, scored))
        ours.write(output, encoded.video_ids)
        if per_query:
            write_queries(per_query, encoded, captions, scored, network.config, device)
        result = record, compare(ours, theirs, options.samples, options.seed) if theirs else None
        if pictures:
            theirs = theirs.in_order_of(ours) if theirs and theirs.arrays else None
            write_pictures(output, network, processor, split, encoded, ours, theirs)
    # the others wait, so that a launcher does not take their end for that of the job
    accelerator.wait_for_everyone()
    return result


def split_and_bank(dataset: DatasetLocation, options: EvaluationOptions) -> tuple[LoadedSplit, list[dict] | None]:
    """The split to evaluate, and for QB-Norm the rows of its bank."""
    name = options.split or default_split(dataset)
    source = dataset._asdict()
    split = load_dataset(**source, split=name)
    if options.post != "qbnorm":
        return split, None
    bank = load_dataset(**source, split=options.bank_split)
    shared = set(bank.dataset["video_id"]) & set(split.dataset["video_id"])
    if shared:
        raise ValueError(
            f"QB-Norm's bank ({options.bank_split}) shares {len(shared)} videos with the evaluated split, e.g. "
            f"{min(shared)!r}: that would be transductive; name another split with --bank-split"
        )
    rows = sorted(bank.dataset, key=lambda row: hash_text(row["video_id"]))
    return split, rows[: options.bank_videos]


def default_split(dataset: DatasetLocation) -> str | None:
    """ "test", or None (everything) for a folder of one's own that is not divided."""
    name, annotations, _ = locate(*dataset[:3])
    if name == "videofolder":
        divided = annotations.is_dir() and any(
            metadata_in(annotations / folder) for names in videofolder.SPLIT_FOLDERS.values() for folder in names
        )
        source = annotations if annotations.is_file() else metadata_in(annotations)
        if not divided and source is not None and not videofolder.has_split_column(source):
            return None
    return "test"


def _dataset_name(dataset: DatasetLocation, report: dict) -> str:
    """The registry's name; for a folder of one's own, that folder's (where it lies is nobody's business)."""
    name, annotations, _ = locate(*dataset[:3])
    return annotations.resolve().stem if name == "videofolder" else report["dataset"]


def _protocol(options: EvaluationOptions) -> dict:
    return {"ties": options.ties, "protocol": options.protocol, "postprocessing": POSTPROCESSING[options.post]}


def _intervals(scored: Scored, gold: np.ndarray, options: EvaluationOptions) -> dict:
    if not options.samples:
        return {}
    draws = {"samples": options.samples, "confidence": options.confidence, "seed": options.seed}
    intervals = bootstrap_intervals(scored.text_ranks, scored.video_ranks, gold, summarize_ranks, **draws)
    return {"intervals": {name: list(bounds) for name, bounds in intervals.items()}, "bootstrap": draws}


def _what_was_ranked(encoded: EncodedSplit, captions: list[str], processor) -> dict:
    """Sizes after decoding, every video that is not there and why, and hashes by which two results know they match."""
    lengths = [len(ids) for ids in processor.tokenizer(captions, verbose=False)["input_ids"]]
    return {
        "videos": len(encoded.video_ids),
        "captions": len(encoded.gold),
        "truncated_captions": sum(length > processor.max_words for length in lengths),
        "undecodable_videos": len(encoded.skipped),
        "undecodable": encoded.skipped,
        "gallery": hash_text("\n".join(sorted(encoded.video_ids)))[:16],
        "queries": hash_text("\n".join(sorted(captions)))[:16],
    }


def _conditions(accelerator, network, model: str, options: EvaluationOptions, bank: EncodedSplit | None) -> dict:
    """What else `results.json` has to say: the model's sizes, its training as far as recorded, machine, code, date."""
    training = _training_record(model)
    return {
        "frames": network.config.max_frames,
        "max_words": network.config.max_words,
        "dtype": str(next(network.parameters()).dtype).removeprefix("torch."),
        "seed": training.get("seed"),
        "global_batch": training.get("global_batch"),
        "training_world_size": training.get("world_size"),
        "world_size": accelerator.num_processes,
        "bank": bank and {"split": options.bank_split, "videos": len(bank.video_ids), "captions": len(bank.gold)},
        "options": asdict(options),
        "code": code_version(),
        "hardware": hardware(accelerator.device),
        "date": time.strftime("%Y-%m-%d"),
    }


def _training_record(model: str) -> dict:
    """run.json beside the model or one folder up, where `training/run.py` leaves it; {} for a model from elsewhere."""
    for folder in (Path(model), Path(model).resolve().parent):
        if (folder / "run.json").is_file():
            return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return {}


def _arrays(encoded: EncodedSplit, captions: list[str], scored: Scored) -> dict[str, np.ndarray]:
    """Ranks and similarities; the keys (int64) tell a caption and a video from any other, whatever its row."""
    ids = encoded.video_ids
    owned = [f"{ids[row]}\0{caption}" for row, caption in zip(encoded.gold, captions, strict=True)]
    keys = {"caption_keys": np.array([*map(stable_id, owned)]), "video_keys": np.array([*map(stable_id, ids)])}
    arrays = {"gold": encoded.gold, "text_ranks": scored.text_ranks, "video_ranks": scored.video_ranks, **keys}
    if scored.similarities is not None:
        arrays["similarities"] = scored.similarities
    return arrays
