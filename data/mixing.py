"""Several training sets as one."""

from typing import Any

from datasets import Dataset, Value, concatenate_datasets

from dmae.data.clips import LoadedSplit

COUNTED = ("videos", "captions", "listed_videos", "missing_videos")


def mixed(first: LoadedSplit, others: list[LoadedSplit]) -> LoadedSplit:
    """The rows of all, one set after the other, with a column `set`, the number of the set (0: the first).

    Ids of the others are led by their set, `msvd:ID` (`msvd-2:ID` where there are two of a name): one id, one video.
    The report counts all, and has each set's own under `sets`.
    """
    sets, names = [first, *others], [""]
    datasets = [split.report["dataset"] for split in sets]
    for number, name in enumerate(datasets[1:], start=1):
        again = datasets[:number].count(name)
        names.append(f"{name}-{again + 1}" if again else name)
    parts = [_numbered(split.dataset, number, name) for number, (split, name) in enumerate(zip(sets, names))]
    missing = [
        {**item, "video_id": _led(item["video_id"], name)} for split, name in zip(sets, names) for item in split.missing
    ]
    reports = [split.report for split in sets]
    counted = {key: sum(report[key] for report in reports) for key in COUNTED}
    hashes = {
        f"{name}:{file}" if name else file: value
        for report, name in zip(reports, names)
        for file, value in report["annotation_files"].items()
    }
    facts = {"dataset": " + ".join(report["dataset"] for report in reports), "published_videos": None}
    report = {**reports[0], **facts, **counted, "annotation_files": hashes, "missing": missing, "sets": reports}
    metadata = {_led(key, name): value for split, name in zip(sets, names) for key, value in split.metadata.items()}
    return LoadedSplit(concatenate_datasets(parts), missing, report, metadata)


def _led(video_id: str, name: str) -> str:
    return f"{name}:{video_id}" if name else video_id


def _numbered(rows: Dataset, number: int, name: str) -> Dataset:
    table: dict[str, Any] = {column: rows[column][:] for column in rows.column_names}
    table |= {"video_id": [_led(video_id, name) for video_id in table["video_id"]], "set": [number] * len(rows)}
    return Dataset.from_dict(table, features=type(rows.features)({**rows.features, "set": Value("int64")}))
