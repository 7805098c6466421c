"""Corpora in tar files, as WebDataset lays them out: members that share a name up to its first dot are one clip.

    train/videos-000000.tar:  dog.mp4  dog.json {"captions": ["a dog runs"], "start": 2.0}    cat.webm  cat.txt

Nothing is unpacked: a clip is a stretch of its tar, in FFmpeg's spelling (`subfile,,start,…,end,…,,:PATH`), and is read
from there. What a tar holds is noted beside it (`NAME.tar.clips.jsonl`) when that folder can be written.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dmae.data.clips import Annotations, Clip
from dmae.data.files import as_captions
from dmae.data.listing import VIDEO_EXTENSIONS
from dmae.files import write_file

TEXT_KEYS = ("captions", "caption", "text")
LARGEST_TEXT = 2**20  # bytes of a member with captions; more is no caption
SPLITS = ("train", "validation", "test")


def read(annotations: Path, split: str | None) -> Annotations:
    """The clips of `split`: of the tars in its folder or whose names begin with it; of all, where no name says.

    Raises FileNotFoundError without a tar, ValueError without one of the split. A damaged tar, and a clip without a
    caption, are set aside.
    """
    tars = shards_of(annotations, split)
    clips, unusable, seen = [], [], set()
    for tar in tars:
        found, wrong = clips_of(tar)
        unusable += wrong
        for clip in found:
            if clip.video_id in seen:
                reason = "a shard before this one has a clip of that name"
                unusable.append({"video_id": clip.video_id, "video": clip.file, "reason": reason})
            else:
                seen.add(clip.video_id)
                clips.append(clip)
    return Annotations(clips, [], unusable)


def shards_of(folder: Path, split: str | None) -> list[Path]:
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of tar files")
    named, inside = _by_split(folder), sorted(folder.rglob("*.tar"))
    if split in (None, "all") or (split == "train" and not any(named.values())):
        chosen = inside
    else:
        chosen = named.get(split, [])
    if not inside:
        raise FileNotFoundError(f"{folder}: no tar file in it or below")
    if not chosen:
        there = ", ".join(name for name, tars in named.items() if tars) or "train"
        raise ValueError(f"{folder}: no tar of the split {split!r}; there are: {there}")
    return chosen


def splits_in(folder: Path) -> list[str]:
    """The splits that names of tars tell of; `train` where none does."""
    return [name for name, tars in _by_split(folder).items() if tars] or ["train"]


def _by_split(folder: Path) -> dict[str, list[Path]]:
    inside = sorted(folder.rglob("*.tar"))
    return {name: [tar for tar in inside if _names(tar.relative_to(folder), name)] for name in SPLITS}


def _names(path: Path, split: str) -> bool:
    """`train/…tar`, `train-000.tar`, `train_000.tar`, and `val` for validation."""
    short = {"validation": ("validation", "val")}.get(split, (split,))
    return path.parts[0] in short or path.name.replace("_", "-").split("-")[0].removesuffix(".tar") in short


def clips_of(tar: Path) -> tuple[list[Clip], list[dict]]:
    """What a tar holds, and what of it cannot be used; from the note beside it where that is still true."""
    note, state = tar.with_name(f"{tar.name}.clips.jsonl"), _state(tar)
    rows = _noted(note, state)
    if rows is None:
        rows = list(_scan(tar))
        lines = [json.dumps(line, ensure_ascii=False) for line in (state, *rows)]
        with suppress(OSError):  # a folder that is only read: the tar is looked through again next time
            write_file(note, "\n".join(lines) + "\n")
    path, clips, unusable = os.path.abspath(tar), [], []
    for row in rows:
        if "reason" in row:
            unusable.append({"video_id": row["key"], "video": f"{tar}: {row['key']}", "reason": row["reason"]})
            continue
        first, last = row["place"]
        where = f"subfile,,start,{first},end,{last},,:{path}"
        clips.append(Clip(row["key"], where, row["captions"], row["start"], row["end"]))
    return clips, unusable


def _state(tar: Path) -> dict:
    status = tar.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def _noted(note: Path, state: dict) -> list[dict] | None:
    try:
        first, *rows = [json.loads(line) for line in note.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return None
    return rows if first == state else None


def _scan(tar: Path) -> Iterable[dict]:
    """{"key", "place": [first, last byte], "captions", "start", "end"} or {"key", "reason"}, in the tar's order."""
    broken, members = None, {}
    try:
        with tarfile.open(tar, "r:") as opened:  # not compressed: a clip is read from its place
            try:
                for member in opened:
                    if member.isfile():
                        folder, name = os.path.split(member.name)
                        members.setdefault(os.path.join(folder, name.split(".")[0]), []).append(member)
            except (tarfile.TarError, EOFError, OSError) as error:
                broken = error  # what stands before the damage is whole
            for key, parts in members.items():
                yield {"key": key, **_clip(opened, parts, tar.stat().st_size)}
    except (tarfile.TarError, EOFError, OSError) as error:
        broken = error
    if broken is not None:
        yield {"key": tar.name, "reason": f"is no whole, uncompressed tar file ({broken}); make or copy it again"}


def _clip(opened: tarfile.TarFile, parts: list[tarfile.TarInfo], size: int) -> dict:
    videos = [part for part in parts if os.path.splitext(part.name)[1].lower() in VIDEO_EXTENSIONS]
    if len(videos) != 1:
        return {"reason": f"{len(videos)} videos among {', '.join(part.name for part in parts)}; a clip has one"}
    first, last = videos[0].offset_data, videos[0].offset_data + videos[0].size
    if last > size:
        return {"reason": f"the tar ends within {videos[0].name}; make or copy it again"}
    try:
        words = _words(opened, parts)
    except ValueError as error:
        return {"reason": str(error)}
    return {"place": [first, last], **words} if words["captions"] else {"reason": "no caption"}


def _words(opened: tarfile.TarFile, parts: list[tarfile.TarInfo]) -> dict:
    """Captions and window, of `.json` and `.txt` members."""
    found: dict = {"captions": [], "start": None, "end": None}
    for part in parts:
        kind = os.path.splitext(part.name)[1].lower()
        if kind not in (".json", ".txt"):
            continue
        if part.size > LARGEST_TEXT:
            raise ValueError(f"{part.name} has {part.size:,} bytes; captions take less")
        stream = opened.extractfile(part) or io.BytesIO()
        try:
            text = stream.read().decode("utf-8-sig")
            content = json.loads(text) if kind == ".json" else {"text": text}
        except ValueError as error:
            raise ValueError(f"{part.name} is not readable ({error})") from None
        if not isinstance(content, dict):
            raise ValueError(f"{part.name} holds {type(content).__name__}, expected an object")
        for key in TEXT_KEYS:
            if key in content:
                found["captions"] += as_captions(content[key], part.name)
        found |= {"key": str(content["video_id"])} if content.get("video_id") else {}
        for key in ("start", "end"):
            if content.get(key) is not None:
                if isinstance(content[key], bool) or not isinstance(content[key], (int, float)):
                    raise ValueError(f"{part.name}: {key} is {content[key]!r}, expected seconds")
                found[key] = float(content[key])
    return found


def write_shards(rows: Iterable[dict], folder: Path, largest: int = 2**29) -> list[Path]:
    """Pack rows {video_id, video, captions, start, end} into `folder/00000.tar`, … of at most `largest` bytes each.

    A clip larger than that gets a tar of its own. Dots and slashes in ids become `_`, with a number where that makes
    two the same. Raises FileExistsError where the folder already holds a tar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.tar")):
        raise FileExistsError(f"{folder}: already holds tar files; give another folder")
    tars, used = [], set()
    for group in _groups(rows, largest):
        tars.append(folder / f"{len(tars):05d}.tar")
        with tarfile.open(tars[-1], "w", format=tarfile.PAX_FORMAT) as opened:
            for row in group:
                key = base = "".join("_" if letter in "./\\" else letter for letter in row["video_id"])
                while key in used:
                    key = f"{base}_{len(used)}"
                used.add(key)
                opened.add(row["video"], arcname=key + os.path.splitext(row["video"])[1].lower())
                words = {name: row[name] for name in ("video_id", "captions", "start", "end")}
                content = json.dumps(words, ensure_ascii=False).encode()
                info = tarfile.TarInfo(f"{key}.json")
                info.size = len(content)
                opened.addfile(info, io.BytesIO(content))
    return tars


def _groups(rows: Iterable[dict], largest: int) -> Iterable[list[dict]]:
    """Rows, in their order, as many at a time as have `largest` bytes together; one at least."""
    group, held = [], 0
    for row in rows:
        size = os.path.getsize(row["video"])
        if group and held + size > largest:
            yield group
            group, held = [], 0
        group.append(row)
        held += size
    if group:
        yield group
