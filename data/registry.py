"""`load_dataset(name, annotations=…, videos=…, split=…)`: every dataset by name, in one schema, with what is missing.

>>> loaded = load_dataset("videofolder", videos="my_videos", split="train")
>>> loaded.dataset[0]
{'video_id': 'a.mp4', 'video': 'my_videos/train/a.mp4', 'captions': ['a dog jumps'], 'start': None, 'end': None}
"""

import difflib
import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from dmae.data import videofolder
from dmae.data.clips import Annotations, Clip, LoadedSplit, clips_to_dataset, sha256_of
from dmae.data.loaders import activitynet, didemo, lsmdc, msrvtt, msvd, shards, vatex
from dmae.data.videos import VideoFolder, VideoNotFound, open_error


@dataclass(frozen=True)
class Loader:
    """How a dataset is read: `read(annotations, split) -> Annotations`, and its published videos per split."""

    read: Callable[..., Annotations]  # (annotations: Path, split: str | None)
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    exact_names: bool = False  # one's own metadata names files; public annotations name ids that lie somewhere below
    located: bool = False  # the annotations say where each video is: there is no folder to look in


DATASETS: dict[str, Loader] = {
    "videofolder": Loader(videofolder.read, exact_names=True),
    "webdataset": Loader(shards.read, located=True),
    "msrvtt-9k": Loader(msrvtt.read_9k, {"train": (9000,), "test": (1000,)}),
    "msrvtt-7k": Loader(msrvtt.read_7k, {"train": (7010,), "test": (1000,)}),
    "msrvtt-full": Loader(msrvtt.read_full, {"train": (6513,), "validation": (497,), "test": (2990,)}),
    "msvd": Loader(msvd.read, {"train": (1200,), "validation": (100,), "test": (670,)}),
    "didemo": Loader(didemo.read, {"train": (8395,), "validation": (1065, 1094), "test": (1004, 1037)}),
    "activitynet": Loader(activitynet.read, {"train": (10009,), "test": (4917,)}),
    "lsmdc": Loader(lsmdc.read, {"train": (101079,), "validation": (7408,), "test": (1000,)}),
    "vatex": Loader(vatex.read, {"train": (25991,), "validation": (1500,), "test": (1500,)}),
}
ALIASES = {"csv": "videofolder", "msrvtt": "msrvtt-9k", "msrvtt-1ka": "msrvtt-9k"}


def load_dataset(
    name: str,
    annotations: str | Path | None = None,
    videos: str | Path | None = None,
    split: str | None = "train",
    *,
    holdout: int = 0,
    check_videos: bool = False,
) -> LoadedSplit:
    """Load one split of a dataset.

    name: a key of DATASETS, or the path of a videofolder. annotations: folder (or file) of the annotation files; for
    `videofolder` the default is `videos`. videos: folder of the videos; None reads the annotations only, and `video` is
    then the name they list. holdout: where no validation split is published, this many training videos (chosen by a
    hash of their ids, so the same on every machine) are `validation` and leave `train`. check_videos: also open every
    file's header.

    Videos that are listed but missing, empty, unreadable or outside the folder are left out, named in `missing` and
    counted in `report`. Raises FileNotFoundError when nothing remains, ValueError for an unknown name or split and for
    a malformed file.
    """
    name, annotations, videos = locate(name, annotations, videos)
    loader = DATASETS[name]
    listed = read_split(name, loader, annotations, split, holdout)
    clips, missing = resolve(listed.clips, videos, loader, check_videos)
    missing = listed.unusable + missing
    if not clips:
        shown = "; ".join(f"{item['video_id']}: {item['reason']}" for item in missing[:3])
        raise FileNotFoundError(
            f"{videos or annotations}: none of the {len(missing)} listed videos can be used ({shown}; …)"
        )
    hashes = {path.name: sha256_of(path) for path in listed.files}
    facts = {"dataset": name, "split": split or "all", "holdout": holdout, "videos_checked": videos is not None}
    return LoadedSplit(
        dataset=clips_to_dataset(clips, split or "all", hashes),
        missing=missing,
        report=facts
        | counts(clips, missing, loader.sizes.get(split or "all"))
        | {"annotation_files": hashes, "missing": missing},
        metadata={clip.video_id: clip.extra for clip in clips if clip.extra},
    )


def counts(clips: list[Clip], missing: list[dict], published: tuple[int, ...] | None) -> dict:
    """How many were listed, published, found and not found."""
    return {
        "published_videos": list(published) if published else None,
        "listed_videos": len(clips) + len(missing),
        "videos": len(clips),
        "missing_videos": len(missing),
        "captions": sum(len(clip.captions) for clip in clips),
    }


class DatasetLocation(NamedTuple):
    """A dataset by its registry name or folder, where its files are, and how many training videos validate."""

    name: str
    annotations: str | None = None
    videos: str | None = None
    holdout: int = 0


def locate(name: str, annotations, videos) -> tuple[str, Path, Path | None]:
    """(dataset, annotations, videos folder), with the defaults of one's own data: all in one folder."""
    if annotations is None and videos is None and Path(name).exists():
        name, annotations = "videofolder", name
    name = canonical_name(name)
    if name == "videofolder" or DATASETS[name].located:
        annotations = annotations or videos
    if not annotations:
        raise ValueError(f"{name}: give `annotations`, the folder of its annotation files")
    annotations = Path(annotations)
    if DATASETS[name].located:
        return name, annotations, annotations
    if name == "videofolder" and not videos:
        videos = annotations.parent if annotations.is_file() else annotations
    return name, annotations, Path(videos) if videos else None


def canonical_name(name: str) -> str:
    """`MSR-VTT`, `msrvtt_9k` … -> the key in DATASETS; an unknown name lists the valid ones."""
    key = name.lower().replace("_", "-").replace("msr-vtt", "msrvtt")
    key = ALIASES.get(key, key)
    if key not in DATASETS:
        near = difflib.get_close_matches(key, DATASETS)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown dataset {name!r}{hint} Valid: {', '.join(DATASETS)}")
    return key


def read_split(name: str, loader: Loader, root: Path, split: str | None, holdout: int) -> Annotations:
    """The annotations of a split; with `holdout`, `train` and `validation` share the published training split."""
    if holdout < 0:
        raise ValueError(f"holdout is {holdout}; it must be 0 or a number of videos")
    if loader.sizes and split not in loader.sizes and not (holdout and split == "validation"):
        hint = "; holdout=N takes N training videos for validation" if split == "validation" else ""
        raise ValueError(f"{name} has no split {split!r}; valid: {', '.join(loader.sizes)}{hint}")
    if not holdout or split not in ("train", "validation"):
        return loader.read(root, split)
    if publishes_validation(loader, root):
        raise ValueError(f"{name} has a validation split of its own; holdout must be 0")
    listed = loader.read(root, "train")
    if holdout >= len(listed.clips):
        raise ValueError(f"holdout={holdout} leaves nothing of {len(listed.clips)} training videos; take fewer")
    by_hash = sorted(listed.clips, key=lambda clip: hashlib.sha256(clip.video_id.encode()).digest())
    held = {clip.video_id for clip in by_hash[:holdout]}
    keep = [clip for clip in listed.clips if (clip.video_id in held) == (split == "validation")]
    return Annotations(keep, listed.files, listed.unusable if split == "train" else [])


def publishes_validation(loader: Loader, root: Path) -> bool:
    if loader.sizes:
        return "validation" in loader.sizes
    try:
        return bool(loader.read(root, "validation").clips)
    except ValueError:
        return False


def resolve(
    clips: list[Clip], videos: Path | None, loader: Loader, check_videos: bool
) -> tuple[list[Clip], list[dict]]:
    """Clips with `file` replaced by a real path, and the ones without a usable file."""
    if videos is None:
        return clips, []
    folder = None if loader.located else VideoFolder(videos)
    found, missing = [], []
    for clip in clips:
        try:
            path = clip.file if folder is None else _find(folder, clip, loader.exact_names)
            if check_videos and (problem := open_error(path)):
                raise VideoNotFound(f"{path} {problem}")
        except VideoNotFound as error:
            missing.append({"video_id": clip.video_id, "video": clip.file, "reason": str(error)})
        else:
            found.append(replace(clip, file=str(path)))
    return found, missing


def _find(folder: VideoFolder, clip: Clip, exact_names: bool) -> Path:
    """Its file under either name; the reason why there is none is that of the first."""
    try:
        return folder.find(clip.file, exact_names)
    except VideoNotFound:
        if clip.other_file is not None:
            with suppress(VideoNotFound):
                return folder.find(clip.other_file, exact_names)
        raise


def available_splits(
    name: str, annotations: str | Path | None, videos: str | Path | None, holdout: int = 0
) -> list[str]:
    """The splits a dataset publishes; of one's own data, the ones that are there (`train` when it is undivided)."""
    name, root, _ = locate(name, annotations, videos)
    own = shards.splits_in if DATASETS[name].located else videofolder.splits_in
    names = DATASETS[name].sizes or own(root)
    return list(dict.fromkeys(["train", "validation", *names])) if holdout else list(names)
