"""What `dmae prepare` does: check a dataset, fit the word table, build the frame cache; its findings in one report."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from dmae.data.clips import LoadedSplit
from dmae.data.frame_cache.builder import build_frame_cache
from dmae.data.loaders.shards import write_shards
from dmae.data.registry import available_splits, load_dataset, locate
from dmae.data.workers import map_in_workers
from dmae.files import make_folder, new_folder, tidy, write_file
from dmae.inference.progress import progress
from dmae.processing.frames_dmae import FrameSampler

SAMPLE = 200  # clips per split that `decode="sample"` tries


@dataclass(frozen=True)
class Preparation:
    """What to prepare, see `dmae prepare --help`. codec None: no frame cache."""

    name: str
    annotations: Path | None
    videos: Path | None
    output: Path
    splits: tuple[str, ...] = ()
    holdout: int = 0
    decode: str = "sample"
    codec: str | None = None
    words: bool = True
    shards: bool = False
    workers: int = 2


def prepare_dataset(wanted: Preparation, sampler: FrameSampler, say: Callable[[str], None] = print) -> dict:
    """Prepare what is wanted: findings through `say`, `report.json` and one `data_*.json` a split; -> the report.

    Raises FileNotFoundError when no split can be read.
    """
    videos = locate(wanted.name, wanted.annotations, wanted.videos)[-1]
    if videos is None and (wanted.codec or wanted.decode != "none"):
        raise ValueError("give --videos, the folder of the videos, or --decode none to check the annotations only")
    loaded, absent = prepared_splits(wanted, say)
    report = {"splits": {}, "absent_splits": absent}
    unreadable = {split: [] for split in loaded}
    if wanted.codec:
        report["frame_cache"] = cache_frames(wanted, wanted.codec, loaded, sampler, unreadable, say)
    elif wanted.decode != "none":
        for split, data in loaded.items():
            unreadable[split] = check_decoding(wanted, split, data, sampler, say)
    if wanted.words and "train" in loaded:
        report["words"] = fit_words(loaded["train"], wanted.output / "words", say)
    if wanted.shards:
        report["shards"] = pack_shards(wanted, loaded, unreadable, say)
    for split, data in loaded.items():
        data.report["unreadable"] = unreadable[split]
        data.write_report(wanted.output)
        report["splits"][split] = data.report
    write_file(wanted.output / "report.json", json.dumps(report, indent=2, ensure_ascii=False))
    say(f"report: {wanted.output / 'report.json'}")
    return report


def prepared_splits(wanted: Preparation, say: Callable[[str], None]) -> tuple[dict[str, LoadedSplit], dict[str, str]]:
    """The asked splits, or all whose annotation files are there; the others with the reason."""
    asked = wanted.splits or available_splits(wanted.name, wanted.annotations, wanted.videos, wanted.holdout)
    check_videos = wanted.decode == "sample" and wanted.codec is None  # else every video, or none, is decoded anyway
    loaded, absent = {}, {}
    for split in asked:
        try:
            loaded[split] = load_dataset(
                wanted.name, wanted.annotations, wanted.videos, split, holdout=wanted.holdout, check_videos=check_videos
            )
        except FileNotFoundError as error:
            if wanted.splits or (split == asked[-1] and not loaded):
                raise
            absent[split] = str(error)
            say(f"{split}: left out: {error}")
        else:
            for line in describe(loaded[split].report):
                say(f"{split}: {line}")
    make_folder(wanted.output)
    tidy(wanted.output)  # what a killed call left
    return loaded, absent


def describe(report: dict) -> list[str]:
    """Counts, published counts and the first missing videos of a split, for people."""
    published = report["published_videos"]
    listed = f"{report['listed_videos']:,} videos listed"
    if published and not report["holdout"]:
        expected = " or ".join(f"{count:,}" for count in published)
        listed += " (as published)" if report["listed_videos"] in published else f" (published: {expected})"
    usable = f"{report['videos']:,} usable" if report["videos_checked"] else "not looked for"
    lines = [f"{listed}, {usable}, {report['captions']:,} captions"]
    for item in report["missing"][:3]:
        lines.append(f"missing: {item['video_id']}: {item['reason']}")
    if len(report["missing"]) > 3:
        lines.append(f"missing: {len(report['missing']) - 3:,} more, all named in the report")
    return lines


def check_decoding(
    wanted: Preparation, split: str, data: LoadedSplit, sampler, say: Callable[[str], None]
) -> list[dict]:
    """Decode all clips, or a sample spread evenly over the split; the ones that fail."""
    rows = list(data.dataset)
    if wanted.decode == "sample":
        count = min(len(rows), SAMPLE)
        rows = [rows[i * len(rows) // count] for i in range(count)]
    unreadable = []
    with progress(len(rows), f"{split}: decoding") as advance:
        for row, result in map_in_workers(partial(count_frames, sampler=sampler), rows, wanted.workers):
            if isinstance(result, Exception):
                unreadable.append({"video_id": row["video_id"], "video": row["video"], "reason": str(result)})
            advance(1)
    say(f"{split}: decoded {len(rows):,} of {len(data.dataset):,} videos, {len(unreadable):,} unreadable")
    tell_unreadable(split, unreadable, say)
    return unreadable


def count_frames(row: dict, sampler) -> int:
    return len(sampler.decode(row["video"], start=row["start"], end=row["end"]).frames)


def tell_unreadable(split: str, unreadable: list[dict], say: Callable[[str], None]) -> None:
    for item in unreadable[:3]:
        say(f"{split}: unreadable: {item['video_id']}: {item['reason']}")


def cache_frames(
    wanted: Preparation, codec: str, loaded: dict[str, LoadedSplit], sampler, unreadable: dict, say
) -> dict:
    """All splits into one frame cache of `codec` pictures; fills `unreadable` per split."""
    rows = [row for data in loaded.values() for row in data.dataset]
    folder = wanted.output / "frames"
    with progress(len(rows), "frame cache") as advance:
        built = build_frame_cache(rows, folder, sampler, codec, wanted.workers, advance)
    broken = {item["video_id"]: item for item in built.unreadable}
    for split, data in loaded.items():
        unreadable[split] = [broken[video_id] for video_id in data.dataset["video_id"] if video_id in broken]
        tell_unreadable(split, unreadable[split], say)
    size = sum(path.stat().st_size for path in folder.glob("shard-*.arrow"))
    say(
        f"frame cache: {built.made:,} clips made, {built.kept:,} kept, {len(built.remade):,} were damaged or outdated, "
        f"{len(built.unreadable):,} unreadable; {size / 1e6:,.1f} MB in {folder}"
    )
    return asdict(built) | {"bytes": size, "folder": folder.name}


def fit_words(train: LoadedSplit, folder: Path, say: Callable[[str], None]) -> dict:
    """The TF-IDF table over the training paragraphs."""
    from dmae.processing.words_dmae import WordWeigher

    weigher = WordWeigher().fit(train.paragraphs())
    with new_folder(folder) as partial:
        weigher.save_pretrained(partial)
    say(f"words: {len(weigher.frequency):,} different words in {weigher.paragraphs:,} training paragraphs -> {folder}")
    return {"paragraphs": weigher.paragraphs, "words": len(weigher.frequency)}


def pack_shards(wanted: Preparation, loaded: dict[str, LoadedSplit], unreadable: dict, say: Callable) -> dict:
    """The clips of each split in tars below `shards/`, without those that did not decode; how many tars and clips."""
    if locate(wanted.name, wanted.annotations, wanted.videos)[-1] is None:
        raise ValueError("give --videos, the folder of the videos, to pack them")
    written = {}
    for split, data in loaded.items():
        broken = {item["video_id"] for item in unreadable[split]}
        rows, folder = [row for row in data.dataset if row["video_id"] not in broken], wanted.output / "shards" / split
        with new_folder(folder) as partial:
            tars = write_shards(rows, partial)
        written[split] = {"tars": len(tars), "clips": len(rows)}
        say(f"{split}: {len(rows):,} clips in {len(tars):,} tars -> {folder}")
    return written
