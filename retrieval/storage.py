"""The index on disk: immutable segment files and one manifest whose renaming is the commit.

    INDEX/manifest.json            what the index is and which segments belong to it; all else is reached from here
    INDEX/segment-XXXX.safetensors rows that were committed together, see `segments.py`
    INDEX/coarse-XXXX.faiss        a FAISS index over the coarse vectors (only with that backend)
    INDEX/query_bank.npz, .txt     what QB-Norm needs of a bank of captions, and the captions (only when one was stored)
    INDEX/texts.sqlite             what is said and written in the videos, for full-text search; made from their files
    INDEX/transcripts/CONTENT.vtt  what a speech model heard in a video (only with `--transcribe`)
    INDEX/serve.json               the server that runs over the index now, see `running.py`
    INDEX/skipped.jsonl            files that could not be read, with the reason

The manifest carries the index's identity, a random `id` given at its first commit, which with the model's hashes tells
one index from another in the same place, and a checksum of itself. A row is a video or one window of it. A process
killed at any moment leaves the last manifest, hence a whole index; files that no manifest names are swept by the next
writer.
"""

import json
import re
import secrets
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dmae import files
from dmae.retrieval.asking import MANIFEST, require_index
from dmae.retrieval.segments import Segment, open_segments

FORMAT = 3  # 2: another FAISS file, no `video_keys`, frames in float16 only; 1: without identity and checksums
REQUIRED = {"format": int, "generation": int, "next_id": int, "model": dict, "config": dict, "segments": list}
OPTIONAL = {"id": str, "backend": str, "frames": str, "window": list, "plan": dict, "faiss": dict, "roots": dict}
OPTIONAL |= {"exclude": list, "text_weight": float}
MODEL = {"name": str, "weights": str, "processor": str}
SEGMENT_FILE, FAISS_FILE = re.compile(r"segment-[0-9a-f]+\.safetensors"), re.compile(r"coarse-[0-9a-f]+\.faiss")
ELSEWHERE = "index the videos again into a new folder"


def new_manifest(**values) -> dict:
    """The manifest of an index without rows, with an identity of its own."""
    empty = {"format": FORMAT, "id": new_identity(), "generation": 0, "next_id": 0, "plan": {}, "segments": []}
    return {**empty, **values}


def new_identity() -> str:
    return secrets.token_hex(16)


def fresh_name(kind: str, suffix: str) -> str:
    return f"{kind}-{secrets.token_hex(8)}.{suffix}"


def read_manifest(folder: Path) -> dict:
    """The committed manifest. FileNotFoundError: no index here; ValueError: damaged, or of a newer format."""
    path = Path(folder) / MANIFEST
    require_index(Path(folder))
    files.reached("read", path)
    try:
        manifest = json.loads(path.read_bytes())
        version = manifest["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged manifest ({type(error).__name__}: {error}); {ELSEWHERE}") from error
    if type(version) is not int or version > FORMAT:
        raise ValueError(f"{path}: format {version!r}, and this version of dmae reads up to {FORMAT}; upgrade dmae")
    problem = _problem(manifest)
    if problem:
        raise ValueError(f"{path}: damaged manifest, {problem}; {ELSEWHERE}")
    return manifest


def write_manifest(folder: Path, manifest: dict) -> None:
    """The commit: after this rename, and not before, readers see the new state."""
    manifest = json.loads(json.dumps({**manifest, "format": FORMAT}))  # as it will be read: keys become strings
    files.write_file(folder / MANIFEST, json.dumps({**manifest, "checksum": _checksum(manifest)}, indent=1))


def _checksum(manifest: dict) -> int:
    return zlib.crc32(json.dumps({k: v for k, v in manifest.items() if k != "checksum"}, sort_keys=True).encode())


def _problem(manifest: dict) -> str | None:
    """What is wrong with a manifest, in words."""
    missing = [name for name in REQUIRED if name not in manifest]
    if missing:
        return f"{', '.join(missing)} missing"
    if manifest["format"] > 1 and manifest.get("checksum") != _checksum(manifest):
        return f"checksum {manifest.get('checksum')} where its content has {_checksum(manifest)}"
    optional = {name: kind for name, kind in OPTIONAL.items() if manifest.get(name) is not None}
    wrong = _wrong_type(manifest, REQUIRED | optional) or _wrong_type(manifest["model"], MODEL)
    if wrong:
        return wrong
    for entry in manifest["segments"]:
        if type(entry) is not dict or _wrong_type(entry, {"file": str, "rows": int, "deleted": list}):
            return f"segment {entry!r:.100}"
        rows = range(entry["rows"])
        if not SEGMENT_FILE.fullmatch(entry["file"]) or not all(type(n) is int and n in rows for n in entry["deleted"]):
            return f"segment {entry['file']!r:.100} with deleted rows {entry['deleted']!r:.100} of {entry['rows']}"
    if manifest.get("faiss") and not FAISS_FILE.fullmatch(str(manifest["faiss"].get("file"))):
        return f"faiss file {manifest['faiss'].get('file')!r:.100}"
    return None


def _wrong_type(values: dict, types: dict[str, type]) -> str | None:
    for name, kind in types.items():
        if type(values.get(name)) is not kind:
            return f"{name} is {values.get(name)!r:.100} and should be of type {kind.__name__}"
    return None


def check_same_index(ours: dict, theirs: dict, folder: Path) -> None:
    """Refuse what stands in `folder` now if it is not the index that we opened, or mean to make there.

    An index that has no commit yet may go on with one that another process made first with the same settings.
    """
    same = ["id"] if ours["generation"] else ["window", "backend", "frames"]
    different = [name for name in same if ours.get(name) != theirs.get(name)]
    built, ours_built = theirs["model"], ours["model"]
    if different or any(built[name] != ours_built[name] for name in ("weights", "processor")):
        raise ValueError(
            f"{folder} holds another index now: {theirs.get('id')}, built with {built['name']} (weights "
            f"{built['weights']}, frames {built['processor']}), while this one is {ours.get('id')}, built with "
            f"{ours_built['name']} (weights {ours_built['weights']}, frames {ours_built['processor']}); "
            f"open the folder again, or choose another"
        )


def read_state(path: Path, known: Sequence[Segment] = ()) -> tuple[dict, list[Segment]]:
    """Manifest and segments of one commit. A writer may merge a segment away between the two reads: read again."""
    attempts = 5
    while True:
        attempts -= 1
        manifest = read_manifest(path)
        try:
            return manifest, open_segments(path, manifest["segments"], known)
        except FileNotFoundError as error:
            if not attempts:
                missing = Path(error.filename).name
                raise ValueError(f"{path}: damaged index, {missing} is missing; run `dmae index` again") from error


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the index for writing; the lock falls with the process. A second writer is refused, readers go on."""
    files.make_folder(folder)
    held = f"{folder} is being written by another process; try again when it has finished"
    with files.locked(folder / ".lock", held):
        yield


def remove_if_new(folder: Path) -> None:
    """Undo what `only_writer` made, when nothing was committed."""
    if not (folder / MANIFEST).exists():
        files.tidy(folder)  # a run before this one may have been killed at its first commit
        (folder / ".lock").unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def sweep(folder: Path, manifest: dict) -> None:
    """Remove what an interrupted writer left behind. Only the writer may call this; what will not go waits."""
    named = {entry["file"] for entry in manifest["segments"]} | {(manifest.get("faiss") or {}).get("file")}
    with suppress(OSError):
        files.reached("sweep", folder)
        files.tidy(folder)
        for path in folder.iterdir():
            ours = SEGMENT_FILE.fullmatch(path.name) or FAISS_FILE.fullmatch(path.name)
            if ours and path.name not in named:
                path.unlink(missing_ok=True)
