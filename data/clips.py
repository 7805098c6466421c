"""What every loader gives: annotated clips, then one `datasets.Dataset` schema plus an account of what is not there."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, List, NamedSplit, Value

from dmae.files import write_file

FEATURES = Features(
    {
        "video_id": Value("string"),
        "video": Value("string"),
        "captions": List(Value("string")),
        "start": Value("float64"),
        "end": Value("float64"),
    }
)


@dataclass(frozen=True)
class Clip:
    """One annotated clip as its annotation file lists it.

    video_id: the identity that survives to the loss and the search result. file: path under the videos folder (its
    extension on disk may differ). start, end: the window in seconds, None = the whole file. extra: columns the schema
    has no place for. other_file: another name that the file goes by.
    """

    video_id: str
    file: str
    captions: list[str]
    start: float | None = None
    end: float | None = None
    extra: dict = field(default_factory=dict)
    other_file: str | None = None


@dataclass(frozen=True)
class Annotations:
    """The clips of one split, the files they were read from, and listed items that cannot be used (id and reason)."""

    clips: list[Clip]
    files: list[Path]
    unusable: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class LoadedSplit:
    """One split, ready for training or evaluation.

    dataset: rows `{video_id, video (path), captions, start, end}` of the clips whose video is there, in annotation
    order. missing: one `{video_id, video, reason}` per listed clip that is not in `dataset`. metadata: `video_id` ->
    extra columns. report: what a result file has to record about its data (sizes, annotation hashes, missing videos).
    """

    dataset: Any  # a datasets.Dataset, whose rows have no type of their own
    missing: list[dict]
    report: dict
    metadata: dict[str, dict] = field(default_factory=dict)

    def paragraphs(self) -> list[str]:
        """All captions of each video joined, one text per row: the documents of the TF-IDF table."""
        return [" ".join(captions) for captions in self.dataset["captions"]]

    def write_report(self, folder: str | Path) -> Path:
        """Write `data_<name>_<split>.json` into `folder`; returns its path."""
        path = Path(folder) / f"data_{self.report['dataset']}_{self.report['split']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(self.report, indent=2, ensure_ascii=False) + "\n")
        return path


def clips_to_dataset(clips: list[Clip], split: str, sources: dict[str, str]) -> Dataset:
    """Clips -> Dataset whose fingerprint depends only on its rows and the annotation files' hashes (`sources`)."""
    rows = [
        {"video_id": c.video_id, "video": c.file, "captions": c.captions, "start": c.start, "end": c.end} for c in clips
    ]
    content = json.dumps([rows, sources, split], sort_keys=True).encode()
    table = pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)
    info = DatasetInfo(features=FEATURES)
    return Dataset(table, info=info, split=NamedSplit(split), fingerprint=hashlib.sha256(content).hexdigest()[:16])


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stable_id(text: str) -> int:
    """A signed 64-bit id that is the same in every process and run (Python's own hash is salted)."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big", signed=True)
