"""What the harnesses share: each trial is done once, kept as a line of JSON, and counted by the mode of its fault."""

import errno
import json
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

FAILURES = (errno.EIO, errno.ENOSPC, errno.EACCES)
KINDS = ("write", "fsync", "rename", "read")
MODES = {"kill": "kills", "crash": "power failures", "torn": "torn writes"}  # by a trial's first word; else "failures"
Trial = tuple[str, str, Callable[[], str | None]]  # name, point, what gives the verdict: "ok" or what is wrong


def run_trials(
    progress: Path, trials: Iterable[Trial], subject: str = "index", until: float = float("inf")
) -> list[dict]:
    """{"subject", "trial", "point", "verdict"} of all trials; those that `progress` holds are not done again.

    until: no trial begins after this time of `time.monotonic()`.
    """
    progress.parent.mkdir(parents=True, exist_ok=True)
    lines = progress.read_text().splitlines() if progress.exists() else []
    done = {entry["trial"]: entry for entry in map(json.loads, lines) if entry.get("subject", "index") == subject}
    with progress.open("a") as file:
        for name, point, trial in trials:
            if name not in done and time.monotonic() < until:
                done[name] = {"subject": subject, "trial": name, "point": point, "verdict": trial()}
                print(json.dumps(done[name]), file=file, flush=True)
    return list(done.values())


def summary(entries: Iterable[dict]) -> dict:
    """Per mode: trials, points, and what was wrong by its first word; the full words of the first ten."""
    parts: dict[str, dict] = {}
    for entry in entries:
        if entry["verdict"] is None:  # the script ended before it was struck
            continue
        mode = MODES.get(entry["trial"].split()[0], "failures")
        part = parts.setdefault(mode, {"trials": 0, "lost": 0, "mixed": 0, "points": Counter(), "wrong": []})
        part["trials"] += 1
        part["points"][entry["point"]] += 1
        if entry["verdict"] != "ok":
            word = entry["verdict"].split(":")[0]
            part[word] = part.get(word, 0) + 1
            part["wrong"] = [*part["wrong"], f"{entry['trial']}: {entry['verdict']}"][:10]
    return parts


@contextmanager
def files_end_at(limit: int) -> Iterator[None]:
    """No file grows beyond `limit` bytes: the kernel refuses the write in its middle (EFBIG)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
