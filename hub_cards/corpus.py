"""Which files of a corpus are published: what its metadata names and known cards; nothing that merely lies there."""

import os
from collections.abc import Iterator
from pathlib import Path

from dmae.data.listing import FILE_COLUMNS, METADATA_FILES, read_rows
from dmae.hub_cards.record import read_json

CARDS = ("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "CITATION.cff", "corpus.json")
PREPARED = (  # what `dmae prepare` writes
    "report.json",
    "data_*.json",
    "words/word_tagger.cfg",
    "words/word_tagger.bin",
    "words/word_frequencies.json",
    "frames/cache.json",
    "frames/shard-*.arrow",
)
NAMING_ENDS = ("file_names", "_file_name", "_file_names")  # columns that name further files: the Hub's convention
TEXTS = (".srt", ".vtt", ".txt", ".json")  # that a row may name beside its video
# First bytes of videos, sounds and pictures: (offset, bytes). A key that calls itself clip.mp4 has none of them.
MEDIA = [(4, box) for box in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")] + [
    (0, b"\x1aE\xdf\xa3"), (0, b"RIFF"), (0, b"FLV"), (0, b"\x30\x26\xb2\x75"), (0, b"\0\0\1\xba"), (0, b"\0\0\1\xb3"),
    (0, b"OggS"), (0, b".RMF"), (0, b"\x06\x0e\x2b\x34"), (0, b"GIF8"), (0, b"\xff\xd8\xff"), (0, b"\x89PNG"),
    (0, b"ID3"), (0, b"\xff\xfb"), (0, b"fLaC"),
]  # fmt: skip
SHOWN = 10


def is_corpus(path: Path) -> bool:
    """A videofolder (metadata in the folder or in its splits) or a prepared dataset, and no model."""
    return (is_prepared(path) or bool(metadata_files(path))) and not (path / "config.json").is_file()


def is_prepared(folder: Path) -> bool:
    """Whether `dmae prepare` wrote this folder: a report of its splits."""
    report = folder / "report.json"
    return report.is_file() and "splits" in read_json(report)


def metadata_files(folder: Path) -> list[Path]:
    places = (folder, *sorted(folder.glob("*/")))
    return [path for place in places for name in METADATA_FILES if (path := place / name).is_file()]


def corpus_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """({path in the repository: file}, what lies in the folder and is left out).

    Raises ValueError, naming them, for files that the metadata names and that are missing, lead out of the folder (by a
    link, an absolute path or ..) or are neither video, sound, picture nor text.
    """
    named = {path.relative_to(folder).as_posix() for path in metadata_files(folder)}
    if is_prepared(folder):
        named |= {path.relative_to(folder).as_posix() for pattern in PREPARED for path in folder.glob(pattern)}
    ours = named | {name for name in CARDS if (folder / name).is_file()}
    rows = [name for path in metadata_files(folder) for name in _named_by(path, folder)]
    chosen = {name: folder / name for name in sorted({*ours, *rows})}
    wrong = [f"{name}: {why}" for name, path in chosen.items() if (why := _refused(path, folder, name in ours))]
    if wrong:
        more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        raise ValueError("not published, because of these files:\n  " + "\n  ".join(wrong[:SHOWN] + more))
    return chosen, sorted(set(_all_in(folder)) - set(chosen), key=lambda name: (name.startswith("."), name))


def describe_left_out(left_out: list[str]) -> str:
    more = f" and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
    return f"left out, since no metadata names them: {', '.join(left_out[:SHOWN])}{more}"


def _named_by(metadata: Path, folder: Path) -> Iterator[str]:
    """The paths, below `folder`, that the rows of a metadata file name."""
    for _, row in read_rows(metadata):
        for column, value in row.items():
            if column in FILE_COLUMNS or column.endswith(NAMING_ENDS):
                for name in value if isinstance(value, list) else [value]:
                    if isinstance(name, str) and name.strip():
                        path = os.path.normpath(metadata.parent / name.strip())
                        yield Path(os.path.relpath(path, folder)).as_posix()


def _refused(path: Path, folder: Path, ours: bool) -> str:
    """Why a chosen file cannot be published, or ""."""
    place = path.resolve()
    if not place.is_relative_to(folder.resolve()):
        return f"leads out of the folder, to {place}"
    if not place.is_file():
        return "the metadata names it, and it is not there" if not place.exists() else "is no regular file"
    if ours or path.suffix.lower() in TEXTS:
        return ""
    with open(path, "rb") as file:
        start = file.read(200)
    packets = any(start[at : at + 1] == b"G" == start[at + 188 : at + 189] for at in (0, 4))  # MPEG-TS, M2TS
    known = packets or any(start[at : at + len(magic)] == magic for at, magic in MEDIA)
    return "" if known else "by its first bytes no video, sound or picture"


def _all_in(folder: Path) -> Iterator[str]:
    """Every file and link below the folder; linked folders are named and not entered."""
    for place, folders, files in os.walk(folder):
        for name in [*files, *(name for name in folders if (Path(place) / name).is_symlink())]:
            yield (Path(place) / name).relative_to(folder).as_posix()
