"""What people type, checked before anything slow is imported: queries, files of queries, filters, times."""

import re
from collections.abc import Sequence
from pathlib import Path

from dmae import files

MAX_QUERY_CHARACTERS = 2_000
PAIR = re.compile(r"\s*([^=<>!]+?)\s*(>=|<=|!=|=|>|<)\s*(.*)", re.DOTALL)
MANIFEST = "manifest.json"
MAX_RESULTS = 500  # that a server gives


def check_query(query: str) -> None:
    if not isinstance(query, str) or not query.strip():
        raise ValueError("the query is empty; type some words")
    if any("\ud800" <= character <= "\udfff" for character in query):
        raise ValueError("the query is not valid UTF-8; check the encoding of the terminal or the file")
    if len(query) > MAX_QUERY_CHARACTERS:
        raise ValueError(f"the query has {len(query)} characters; at most {MAX_QUERY_CHARACTERS} are accepted")


def read_lines(path: str | Path, what: str) -> list[str]:
    """The lines of a text file that are not empty: queries or captions. ValueError where there are none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of {what}")
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error
    if not lines:
        raise ValueError(f"{path}: no {what} in it; one per line")
    return lines


def parse_filter(pairs: Sequence[str]) -> dict[str, list[str]]:
    """["year>=2019", "title=*beach*", …] -> {key: [condition, …]}; all must hold. ValueError for another form."""
    conditions: dict[str, list[str]] = {}
    for pair in pairs:
        parts = PAIR.fullmatch(pair)
        if parts is None:
            raise ValueError(f"the filter {pair!r} is not key=value, key!=value, or key>=value with >=, <=, > or <")
        key, sign, value = parts.groups()
        conditions.setdefault(key, []).append(value if sign == "=" else sign + value)
    return conditions


def require_index(folder: Path) -> None:
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} holds no index ({MANIFEST} is missing); make one with `dmae index`")


def require_free(folder: Path) -> None:
    """Refuse a folder that an index cannot be made in. What a kill at the first commit leaves does not count."""
    if (folder / MANIFEST).exists() or not folder.exists():
        return
    if any(path.name != ".lock" and not path.name.endswith(files.NEW) for path in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no index; choose another folder")


def clock(seconds: float) -> str:
    """A time as people write it.

    >>> clock(4.2), clock(3725)
    ('0:04', '1:02:05')
    """
    whole = max(0, int(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
