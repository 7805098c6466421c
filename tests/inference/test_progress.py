"""Progress says how far a film is, not only how many videos are done."""

import pytest

from dmae.inference import progress as module
from dmae.inference.embedding import _share_done
from dmae.inference.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds as a test sets them."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_long_video_counts_by_the_time_that_is_done(clock, capsys):
    with progress(2, "indexing") as advance:
        for _ in range(3):
            clock.now += 11
            advance(0.25, 120)
        clock.now += 11
        advance(1.25, 121)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("indexing: 0/2 (120 moments) videos, ") and lines[0].endswith(", about 77 s left")
    assert lines[-1] == "indexing: 2/2 (481 moments) videos, 0.0 videos/s, took 44 s"


def test_videos_of_one_moment_are_counted_as_before(clock, capsys):
    with progress(4, "indexing") as advance:
        clock.now += 20
        advance(2, 2)
    assert capsys.readouterr().err.splitlines()[0] == "indexing: 2/4 videos, 0.1 videos/s, about 20 s left"


@pytest.mark.parametrize(
    "item, share",
    [
        ({"end": 30.0, "span": (10.0, 90.0), "last": False}, 0.25),
        ({"end": 90.0, "span": (10.0, 90.0), "last": True}, 0.0),  # it is a whole one then
        ({"end": None, "span": None}, 0.0),
        ({"end": 5.0, "span": (7.0, 7.0), "last": False}, 0.0),
    ],
)
def test_the_share_of_a_video_that_is_done(item, share):
    assert _share_done(item) == share


@pytest.mark.parametrize("total", [None, 3])
def test_what_the_last_line_said_is_not_said_again(total, clock, capsys):
    """A source without an end has no last item to know the last line by."""
    with progress(total, "looking", "files") as advance:
        clock.now += 11
        advance(2)
    assert len(capsys.readouterr().err.splitlines()) == 1
    with progress(total, "looking", "files") as advance:
        clock.now += 11
        advance(2)
        clock.now += 1
        advance(1)
    first, last = capsys.readouterr().err.splitlines()
    assert (first.split()[1], last.split()[1]) == (("2", "3") if total is None else ("2/3", "3/3"))
