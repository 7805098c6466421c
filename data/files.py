"""Reading annotation files with errors a person can act on: the path, what was found, what is valid."""

import csv
import io
import json
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path

from dmae.data.clips import Clip


def find_file(annotations: Path, *names: str) -> Path:
    """The first of `names` in the folder `annotations`, or `annotations` itself when it is a file of that kind.

    Raises FileNotFoundError naming the folder, the names tried and what lies there.
    """
    if annotations.is_file():
        if annotations.suffix not in {Path(name).suffix for name in names}:
            raise FileNotFoundError(f"{annotations}: is not {' or '.join(names)}; give the folder that holds it")
        return annotations
    if not annotations.is_dir():
        raise FileNotFoundError(
            f"{annotations}: no such annotation folder or file; say where the dataset's annotation files lie"
        )
    for name in names:
        if (annotations / name).is_file():
            return annotations / name
    present = sorted(entry.name for entry in annotations.iterdir())
    shown = ", ".join(present[:10]) + (", …" if len(present) > 10 else "") if present else "nothing"
    raise FileNotFoundError(f"{annotations}: none of {', '.join(names)} is here; the folder holds {shown}")


def read_text(path: Path) -> str:
    """A UTF-8 file with or without a byte-order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from None


def read_json(path: Path):
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); the download may be incomplete") from None


def read_json_lines(path: Path) -> list[tuple[int, dict]]:
    """(line number, object) of each non-empty line."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # U+2028 ends no line here
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not valid JSON ({error.msg}); one object per line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object {{…}}, found {type(row).__name__}")
        rows.append((number, row))
    if not rows:
        raise ValueError(f"{path}: the file is empty")
    return rows


def read_csv(path: Path, required: tuple[str, ...] = ()) -> list[tuple[int, dict]]:
    """(line number, row by column name) of a file whose first line names its columns, parted by , or ; or tabs."""
    text = read_text(path)
    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), skipinitialspace=True)
    columns = [name.strip() for name in reader.fieldnames or []]
    lacking = [name for name in required if name not in columns]
    if lacking:
        raise ValueError(
            f"{path}: no column {', '.join(lacking)}; the first line has {', '.join(columns) or 'nothing'}"
        )
    reader.fieldnames = columns
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(
                f"{path}, line {reader.line_num}: expected {len(columns)} columns; quote texts with commas"
            )
        rows.append((reader.line_num, row))
    if not rows:
        raise ValueError(f"{path}: no rows below the header")
    return rows


def read_list(path: Path) -> list[str]:
    """One id per line; blank lines are skipped."""
    ids = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not ids:
        raise ValueError(f"{path}: the list is empty")
    return ids


class _ContainersOnly(pickle.Unpickler):
    """Admits dicts, lists, tuples, sets, strings and numbers. Anything that names code is refused before it can run."""

    ALLOWED = {
        ("collections", "OrderedDict"): OrderedDict,
        ("collections", "defaultdict"): defaultdict,
        ("builtins", "list"): list,
        ("builtins", "set"): set,
        ("__builtin__", "list"): list,
        ("__builtin__", "set"): set,
    }

    def find_class(self, module, name):
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}; only containers and strings are read"
            ) from None


def read_pickle(path: Path):
    """A pickle of containers and strings; any other object in it raises ValueError before it can execute anything."""
    try:
        with open(path, "rb") as stream:
            return _ContainersOnly(stream, encoding="utf-8").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: refused as a caption file: {error}") from None


def as_captions(value, where: str) -> list[str]:
    """A caption or a list of captions -> non-empty captions with single spaces. `where` opens the error message."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(text, str) for text in values):
        raise ValueError(f"{where}: captions must be a text or a list of texts, found {value!r:.80}")
    return [joined for text in values if (joined := " ".join(text.split()))]


def column_of(item, key: str, where: str):
    """`item[key]`, or a ValueError that names the key and what the item has."""
    if isinstance(item, dict) and key in item:
        return item[key]
    found = ", ".join(map(str, item)) if isinstance(item, dict) else type(item).__name__
    raise ValueError(f"{where}: no {key!r}; it has {found}")


def optional_file(annotations: Path, *names: str) -> Path | None:
    """The first of `names` in the folder `annotations`, or None (also when `annotations` is a file)."""
    return next((annotations / name for name in names if (annotations / name).is_file()), None)


def select(ids: list[str], captions: dict[str, list[str]], extension: str) -> tuple[list[Clip], list[dict]]:
    """Clips of `ids` in their order, each id once; ids without a caption are set aside."""
    clips, unusable = [], []
    for video_id in dict.fromkeys(ids):
        if captions.get(video_id):
            clips.append(Clip(video_id, video_id + extension, captions[video_id]))
        else:
            unusable.append({"video_id": video_id, "video": video_id + extension, "reason": "no caption"})
    return clips, unusable
