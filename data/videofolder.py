"""One's own data: a folder with `metadata.jsonl` (the Hub's `videofolder` convention), or a CSV of path and caption.

`metadata.jsonl`, one object per line: `file_name` (below the folder), `captions` (list) or `text` (string), optionally
`video_id`, `start`, `end`; further columns are kept aside. Splits are the subfolders `train`, `validation` and `test`.
A CSV has the columns `path` and `caption` (several lines for one video become its captions), optionally `video_id`,
`start`, `end` and `split`.
"""

from pathlib import Path, PurePosixPath

from dmae.data.clips import Annotations, Clip
from dmae.data.files import as_captions
from dmae.data.listing import CAPTION_COLUMNS, FILE_COLUMNS, clip_id, file_of, metadata_in, one_of, read_rows, window_of

SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
SCHEMA_COLUMNS = {*FILE_COLUMNS, *CAPTION_COLUMNS, "video_id", "start", "end", "split"}


def read(annotations: Path, split: str | None) -> Annotations:
    """A metadata file, a CSV, or a folder that holds `metadata.jsonl` / `metadata.csv`, itself or per split."""
    source, prefix, rows_split = locate(annotations, split)
    rows = read_rows(source)
    rows = [(line, row) for line, row in rows if rows_split is None or split_of(row, source, line) == rows_split]
    if not rows:
        raise ValueError(f"{source}: no row has the split {rows_split!r}")
    clips, unusable = group_rows(rows, source, prefix)
    return Annotations(clips, [source], unusable)


def locate(annotations: Path, split: str | None) -> tuple[Path, str, str | None]:
    """(metadata file, folder of its file names relative to the videos folder, value the `split` column must have)."""
    if annotations.is_file():
        return annotations, "", split if has_split_column(annotations) else only_split(annotations, split)
    if not annotations.is_dir():
        raise FileNotFoundError(f"{annotations}: no such folder")
    folders = ((name, folder) for name, spellings in SPLIT_FOLDERS.items() for folder in spellings)
    found = {name: (source, folder) for name, folder in folders if (source := metadata_in(annotations / folder))}
    if found:
        if split not in found:
            raise ValueError(f"{annotations}: no split {split!r}; it has {', '.join(found)}")
        source, folder = found[split]
        return source, folder + "/", None
    source = metadata_in(annotations)
    if source is None:
        present = ", ".join(sorted(entry.name for entry in annotations.iterdir())[:10]) or "nothing"
        raise FileNotFoundError(
            f"{annotations}: no metadata.jsonl or metadata.csv here or in train/; it holds {present}"
        )
    return source, "", split if has_split_column(source) else only_split(source, split)


def splits_in(annotations: Path) -> list[str]:
    """The splits that are there: subfolders with metadata, values of the `split` column, or `train` alone."""
    if annotations.is_dir():
        folders = [name for name, names in SPLIT_FOLDERS.items() if any(metadata_in(annotations / f) for f in names)]
        if folders:
            return folders
    source = annotations if annotations.is_file() else metadata_in(annotations)
    if source is None or not has_split_column(source):
        return ["train"]
    present = {split_of(row, source, line) for line, row in read_rows(source)}
    return [name for name in SPLIT_FOLDERS if name in present]


def has_split_column(source: Path) -> bool:
    return source.suffix.lower() in (".csv", ".tsv") and "split" in read_rows(source)[0][1]


def only_split(source: Path, split: str | None) -> None:
    """Without split folders or column all rows are one split: `train`, or None for "whatever there is"."""
    if split not in (None, "train"):
        raise ValueError(
            f"{source}: has no split {split!r}, only one undivided set; make the subfolders train/, validation/ "
            "and test/ (or a `split` column in a CSV), hold out training videos, or give no split to take everything"
        )


def split_of(row: dict, source: Path, line: int) -> str:
    value = str(row["split"]).strip().lower()
    for name, spellings in SPLIT_FOLDERS.items():
        if value in spellings:
            return name
    raise ValueError(f"{source}, line {line}: split {row['split']!r} is none of {', '.join(SPLIT_FOLDERS)}")


def group_rows(rows: list[tuple[int, dict]], source: Path, prefix: str) -> tuple[list[Clip], list[dict]]:
    """Rows of one clip (same file, same window) are merged in file order; rows without a caption are set aside."""
    clips: dict[tuple, Clip] = {}
    owners: dict[str, tuple] = {}
    for line, row in rows:
        where = f"{source}, line {line}"
        file_name = file_of(row, where)
        captions = as_captions(one_of(row, CAPTION_COLUMNS, where, "captions (or text)"), where)
        start, end = window_of(row, where)
        key = (file_name, start, end)
        file = str(PurePosixPath(prefix, file_name))
        video_id = str(row.get("video_id") or clip_id(file, start, end))
        if owners.setdefault(video_id, key) != key:
            raise ValueError(f"{where}: video_id {video_id!r} already names {owners[video_id][0]}; ids must be unique")
        if key in clips:
            clips[key].captions.extend(captions)
        else:
            extra = {name: value for name, value in row.items() if name not in SCHEMA_COLUMNS}
            clips[key] = Clip(video_id, file, captions, start, end, extra)
    unusable = [
        {"video_id": c.video_id, "video": c.file, "reason": "no caption"} for c in clips.values() if not c.captions
    ]
    return [clip for clip in clips.values() if clip.captions], unusable
