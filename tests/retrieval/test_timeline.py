"""How long a video plays: what a header claims counts only as far as its packets bear it out."""

from types import SimpleNamespace

import numpy as np
import pytest

from dmae.retrieval import timeline
from dmae.retrieval.timeline import LAST_FRAME_SECONDS, Timeline, read_timeline, windows_of
from dmae.retrieval.windows import WindowPlan


class Video:
    """A container with a key frame at every tenth packet, and a note of what was read of it."""

    def __init__(self, times, claimed=None, size=10**9):
        self.order, self.claimed, self.size, self.read = list(times), claimed, size, []
        self.stream = self.container = SimpleNamespace(metadata={})

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def claimed_span(self):
        return self.claimed

    def packet_times(self, after=None, first=None):
        self.read.append((after, first))
        keys = [at for at in range(0, len(self.order), 10) if after is not None and self.order[at] <= after]
        return np.sort(np.array(self.order[max(keys, default=0) :][:first], dtype=np.float64))


@pytest.fixture
def read(monkeypatch):
    """read(video) -> its timeline."""

    def read(video: Video) -> Timeline | None:
        monkeypatch.setattr(timeline, "VideoContainer", lambda path, limits: video)
        return read_timeline("path")

    return read


TIMES = 4.0 + 0.5 * np.arange(40)  # to 23.5


@pytest.mark.parametrize(
    ("claimed", "end"),
    [(23.5, 23.5), (24.0, 24.0), (23.5 + LAST_FRAME_SECONDS, 33.5), (33.6, 23.5), (3e9, 23.5), (6.0, 23.5)],
)
def test_a_claim_is_believed_as_long_as_a_last_frame_may_stay(read, claimed, end):
    """Read are the first packet and those of the last second; the others may be hours."""
    video = Video(TIMES, (0.0, claimed))
    assert read(video) == Timeline(4.0, end, None, {"duration": end - 4.0})
    assert video.read == [(None, 1), (claimed - 1.0, None)]


def test_a_video_begins_with_the_frame_that_is_shown_first(read):
    order = [4.5, 4.0, *TIMES[2:9]]
    assert read(Video(order, (4.5, 8.5))) == Timeline(4.0, 8.5, None, {"duration": 4.5})


@pytest.mark.parametrize("size", [3_499, 3_500, 3_999, 4_000])
def test_of_a_file_that_is_small_for_its_length_every_packet_is_read(read, size):
    """Below a thousand bytes a second; and where that is so, windows are cut where frames are."""
    video = Video(TIMES[:8], (4.0, 8.0), size)  # 3.5 s to the beginning of the last frame, 4 to its end
    found = read(video)
    assert found[:2] == (4.0, 8.0) and found.facts == {"duration": 4.0}
    assert len(video.read) == (3 if size < 3_500 else 2) and (found.times is not None) is (size < 3_500)
    video = Video(TIMES[:8], None, size)
    found = read(video)
    assert found[:2] == (4.0, 8.0) and found.facts == {"duration": 4.0} and video.read[-1] == (None, None)
    assert (None if found.times is None else found.times.tolist()) == (TIMES[:8].tolist() if size < 4_000 else None)


def test_what_has_no_length_has_no_timeline(read):
    assert read(Video([], (0.0, 5.0))) is read(Video([])) is read(Video([3.0])) is None
    assert read(Video([3.0], (3.0, 3.0))) is None and read(Video([3.0], (3.0, 3.5)))[:2] == (3.0, 3.5)
    assert read(Video([1.0, 2.5])) == Timeline(1.0, 4.0, None, {"duration": 3.0}), "the last frame stays as the others"
    assert read(Video([0.0, 30.0])).end == 30.0 + LAST_FRAME_SECONDS


def test_windows_lie_in_the_part_of_the_film_that_a_clip_is():
    plan, film = WindowPlan(2, 1), Timeline(1.0, 9.0)
    item = {"video_id": "v", "path": "p"}

    def cut(clip, over: Timeline | None = film, plan=plan):
        found = list(windows_of({**item, "clip": clip}, over, plan))
        assert {one["video_id"] for one in found} == {"v"} and [one["last"] for one in found][-2:] in (
            [True],
            [False, True],
        )
        assert {one["span"] for one in found} == {over and (over.start, over.end)}
        return [(one["start"], one["end"]) for one in found]

    assert cut((2.0, 5.0)) == [(2.0, 4.0), (3.0, 5.0)] == cut([2.0, 5.0])
    assert cut((7.0, None)) == [(7.0, None)]
    assert cut((6.0, None)) == [(6.0, 8.0), (7.0, 9.0)] and cut((0.0, 4.0)) == [(1.0, 3.0), (2.0, 4.0)]
    assert (
        cut((7.0, 99.0)) == [(7.0, 99.0)] and cut(None)[:2] == [(1.0, 3.0), (2.0, 4.0)] and cut(None)[-1] == (7.0, 9.0)
    )
    assert cut((2.0, 5.0), None) == [(2.0, 5.0)] and cut(None, None) == [(None, None)]
    assert cut((2.0, 5.0), plan=WindowPlan(0)) == [(2.0, 5.0)] and cut(None, plan=WindowPlan(0)) == [(None, None)]
    holes = film._replace(times=np.array([1.0, 8.5]))
    assert cut(None, holes) == [(1.0, 3.0), (7.0, 9.0)]
