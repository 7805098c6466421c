"""Words with times: subtitle files beside a video, the text tracks inside it, and transcripts of its sound."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av

SIDECARS = (".srt", ".vtt", ".ass", ".ssa")
TRANSCRIPTS = "transcripts"  # the folder of an index that holds what was heard, CONTENT.vtt
MAX_CUES = 100_000
MARKS = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")


class Cue(NamedTuple):
    """What is said from start to end, in seconds."""

    start: float
    end: float
    text: str


class Sidecars:
    """`sidecars.of(film.mp4)` -> `film.srt` and `film.en.vtt` beside it; each folder is listed once."""

    def __init__(self):
        self.by_folder: dict[Path, dict[str, list[Path]]] = {}

    def of(self, video: str | Path) -> list[Path]:
        video = Path(video)
        if video.parent not in self.by_folder:
            self.by_folder[video.parent] = self._listed(video.parent)
        return self.by_folder[video.parent].get(video.stem, [])

    @staticmethod
    def _listed(folder: Path) -> dict[str, list[Path]]:
        by_stem: dict[str, list[Path]] = {}
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            return {}
        for name in names:
            path = folder / name
            if path.suffix.lower() in SIDECARS and path.is_file():
                for stem in {path.stem, path.stem.rpartition(".")[0] or path.stem}:
                    by_stem.setdefault(stem, []).append(path)
        return by_stem


def read_cues(path: str | Path) -> list[Cue]:
    """The cues of a subtitle file, or of the text tracks of a video. A file that cannot be read has none."""
    try:
        with av.open(str(path), options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
            tracks = [stream for stream in container.streams.subtitles if stream.codec_context is not None]
            return list(_cues(container, tracks)) if tracks else []
    except (av.FFmpegError, OSError, ValueError):
        return []


def _cues(container, tracks: Sequence) -> Iterator[Cue]:
    count = 0
    for packet in container.demux(tracks):
        if not packet.size or packet.pts is None or count == MAX_CUES:
            continue
        text = " ".join(MARKS.sub(" ", _text(packet)).split())
        start = float(packet.pts * packet.time_base)
        if text:
            count += 1
            yield Cue(start, start + float((packet.duration or 0) * packet.time_base), text)


def _text(packet) -> str:
    try:
        parts = [subtitle.dialogue for subtitle in packet.decode() if hasattr(subtitle, "dialogue")]
    except av.FFmpegError:  # FFmpeg takes subtitles in UTF-8 only
        parts = [bytes(packet)]
    return "\n".join(_decoded(part) for part in parts).replace("\\N", " ").replace("\\n", " ")


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")
