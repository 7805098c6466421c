"""What is said in videos without subtitles: heard by a speech model, kept as INDEX/transcripts/CONTENT.vtt.

The model is transformers' own pipeline for speech, so any Whisper checkpoint will do. Sound is read ten minutes at a
time in a worker process, and a video's file is written when all of it was heard: whatever stops a run, the next one
goes on with the next video.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import av
import numpy as np

from dmae import files
from dmae.inference.guarded import in_worker
from dmae.inference.progress import progress
from dmae.retrieval.spoken import TRANSCRIPTS, Cue, Sidecars, read_cues

RATE = 16_000
BLOCK_SECONDS = 600.0
Heard = Callable[[np.ndarray], list[tuple[float, float | None, str]]]  # sound -> (start, end, text) in its seconds


def transcribe(folder: Path, rows: Iterable[dict], name: str, device: str = "auto", in_process: bool = False) -> list:
    """Write what is missing for the videos of an index; -> [{video_id, path, error}] of those that could not be heard.

    Left alone: videos that have subtitles, beside them or inside, and what this model has heard before. A video without
    sound has an empty transcript. Raises OSError, ValueError for a model that cannot be loaded or hears nothing.
    """
    todo = [row for row in _videos(rows) if _is_missing(folder, row, name)]
    if not todo:
        return []
    hear = load_listener(name, device)
    failed = []
    (folder / TRANSCRIPTS).mkdir(exist_ok=True)
    blocks = [(row, number) for row in todo for number in range(_blocks(row))]
    with progress(len(todo), "listening") as advance:
        done = (one for batch in in_worker(_Sound(), blocks, 1, 0 if in_process else 1) for one in batch)
        for row, (_, parts) in zip(todo, groupby(done, key=lambda one: one[0][0]["content"])):
            cues, error = _heard(hear, parts)
            if error is None:
                files.write_file(transcript_of(folder, row), as_vtt(cues, name))
            else:
                failed.append({"video_id": row["video_id"], "path": row["path"], "error": f"sound: {error}"})
            advance()
    return failed


def _heard(hear: Heard, parts: Iterable[tuple]) -> tuple[list[Cue], str | None]:
    """(cues, error) of one video; the sound of one block at a time is in memory."""
    cues, error = [], None
    for (_, number), sound, trouble in parts:
        error = error or trouble
        if error is None and len(sound):
            cues += _cues(hear(sound), number * BLOCK_SECONDS, len(sound) / RATE)
    return cues, error


def transcript_of(folder: Path, row: dict) -> Path:
    return folder / TRANSCRIPTS / f"{row['content']}.vtt"


def load_listener(name: str, device: str = "auto") -> Heard:
    """A speech model of transformers as a function of sound."""
    from transformers import pipeline

    from dmae.inference.loading import resolve_device

    listener = pipeline("automatic-speech-recognition", model=name, device=resolve_device(device))
    if listener.type != "seq2seq_whisper":
        raise ValueError(
            f"--transcribe {name}: a {listener.model.config.model_type} model gives no times; give a Whisper"
        )

    def hear(sound: np.ndarray) -> list[tuple[float, float | None, str]]:
        found: Any = listener({"raw": sound, "sampling_rate": RATE}, return_timestamps=True)
        return [(*chunk["timestamp"], chunk["text"]) for chunk in found["chunks"]]

    return hear


def as_vtt(cues: Sequence[Cue], name: str) -> str:
    """A WebVTT file. What is said is text in it, whatever it looks like.

    >>> print(as_vtt([Cue(1.0, 2.5, "a --> <b>")], "m"))
    WEBVTT
    <BLANKLINE>
    NOTE heard by m
    <BLANKLINE>
    00:00:01.000 --> 00:00:02.500
    a --&gt; &lt;b&gt;
    <BLANKLINE>
    """
    parts = ["WEBVTT", _note(name)]
    for cue in cues:
        text = " ".join(cue.text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        parts.append(f"{_stamp(cue.start)} --> {_stamp(cue.end)}\n{text}")
    return "\n\n".join(parts) + "\n"


def _note(name: str) -> str:
    return "NOTE heard by " + " ".join(name.split()).replace("-->", "->")


def _stamp(seconds: float) -> str:
    thousandths = round(seconds * 1000)
    return (
        f"{thousandths // 3_600_000:02}:{thousandths // 60_000 % 60:02}:"
        f"{thousandths // 1000 % 60:02}.{thousandths % 1000:03}"
    )


def _videos(rows: Iterable[dict]) -> Iterator[dict]:
    """One row of every content that can be named."""
    return iter({row["content"]: row for row in rows if row.get("content") and row["path"]}.values())


def _is_missing(folder: Path, row: dict, name: str) -> bool:
    path = transcript_of(folder, row)
    if path.is_file():
        return _note(name) not in path.read_text(encoding="utf-8", errors="replace").split("\n", 3)
    return Path(row["path"]).is_file() and not Sidecars().of(row["path"]) and not read_cues(row["path"])


def _blocks(row: dict) -> int:
    return max(1, -int(-(row.get("file", {}).get("duration") or 0.0) // BLOCK_SECONDS))


def _cues(heard: Iterable[tuple], offset: float, seconds: float) -> list[Cue]:
    """Cues in seconds of the video, in order; a model that is not sure where a sentence ends says nothing of it."""
    cues = []
    for start, end, text in heard:
        start = min(max(0.0, start or 0.0), seconds)
        end = min(seconds if end is None else end, seconds)
        if text.strip() and end >= start:
            cues.append(Cue(offset + start, offset + end, text.strip()))
    return sorted(cues)


class _Sound:
    """What the worker runs: (row, block) -> its sound as float32 at 16 kHz, one channel; empty without any."""

    cpu_seconds = 300.0

    def __call__(self, item: tuple[dict, int]) -> np.ndarray:
        row, number = item
        return read_sound(row["path"], number * BLOCK_SECONDS, (number + 1) * BLOCK_SECONDS)


def read_sound(path: str, start: float, end: float) -> np.ndarray:
    """Samples of [start, end) seconds, silence where a stream has a gap. ValueError for sound that is damaged."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
    sound, last = np.zeros(round((end - start) * RATE), np.float32), 0
    try:
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
            if not container.streams.audio:
                return sound[:0]
            if start:
                container.seek(int(start * av.time_base))
            for frame in container.decode(container.streams.audio[0]):
                if frame.time is not None and frame.time >= end:
                    break
                for piece in resampler.resample(frame):
                    at = round(((piece.time or 0.0) - start) * RATE)
                    samples = piece.to_ndarray()[0][max(0, -at) :][: max(0, len(sound) - max(0, at))]
                    sound[max(0, at) : max(0, at) + len(samples)] = samples
                    last = max(last, max(0, at) + len(samples))
    except av.FFmpegError as error:
        if not last:
            raise ValueError(f"cannot be decoded ({error.strerror or type(error).__name__})") from error
    return sound[:last]
