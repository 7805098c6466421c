"""Filters on what is known of a video: patterns, comparisons of numbers and dates, words in any case."""

import fnmatch
import re
from collections.abc import Callable

import numpy as np

from dmae.retrieval.snapshot import Snapshot

COMPARISONS: dict[str, Callable] = {
    ">=": lambda value, bound: value >= bound,
    "<=": lambda value, bound: value <= bound,
    ">": lambda value, bound: value > bound,
    "<": lambda value, bound: value < bound,
}
DATE = re.compile(r"\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d)?)?)?)?)?")


def described(row: dict) -> dict:
    """All that is known of a video: what the file says of itself, then the columns of its row in the metadata."""
    return {**row.get("file", {}), **row.get("metadata", {})}


def filtered_ids(snapshot: Snapshot, filter: dict) -> np.ndarray:
    """Ids of the rows for which every condition holds: {key: a pattern with * and ?, or a comparison, or several}.

    Keys and words count in any case. An unknown key is an error that lists the known ones.
    """
    rows = snapshot.rows()
    known = {name.lower(): name for row in rows for name in described(row)}
    known |= {"video_id": "video_id", "path": "path"}
    unknown = [key for key in filter if key.lower() not in known]
    if unknown:
        listed = ", ".join(sorted(known.values()))
        raise ValueError(f"unknown filter {', '.join(sorted(unknown))}; this index has: {listed}")
    wanted = {key.lower(): [value] if isinstance(value, str) else value for key, value in filter.items()}
    wanted = {key: list(value) if isinstance(value, (list, tuple)) else [value] for key, value in wanted.items()}
    return snapshot.ids[[_passes(row, wanted) for row in rows]]


def _passes(row: dict, wanted: dict[str, list]) -> bool:
    columns = {str(name).lower(): value for name, value in described(row).items()}
    columns |= {"video_id": row["video_id"], "path": row["path"]}
    return all(
        holds(columns.get(key), str(condition)) for key, conditions in wanted.items() for condition in conditions
    )


def holds(value, condition: str) -> bool:
    """Does a value meet a condition? A list does when one of its entries does; what is missing meets only `!=`.

    >>> holds(2021, ">=2019"), holds("2019-12-24T18:00:00", "<=2019"), holds("At the Beach", "*beach")
    (True, True, True)
    """
    if condition.startswith("!="):
        return not holds(value, condition[2:])
    sign = next((sign for sign in COMPARISONS if condition.startswith(sign)), None)
    if isinstance(value, (list, tuple)):
        return any(holds(entry, condition) for entry in value)
    if sign is None:
        return fnmatch.fnmatchcase("" if value is None else str(value).lower(), condition.lower())
    pair = None if value is None else _comparable(value, condition[len(sign) :].strip())
    return pair is not None and COMPARISONS[sign](*pair)


def _comparable(value, bound: str) -> tuple | None:
    """Both as numbers; or as dates, as exactly as the bound: all of 2019 is <=2019. None where neither fits."""
    try:
        return float(value), float(bound)
    except (TypeError, ValueError):
        text = str(value).replace(" ", "T")
        if DATE.match(text) and DATE.fullmatch(bound):
            return text[: len(bound)], bound.replace(" ", "T")
        return None
