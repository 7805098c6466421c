"""The small rules of indexing and searching, as tables: what is one passage, one shot, one root."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from watchdog.events import FileSystemEvent

from dmae.retrieval import duplicates, places, shots, stretching, watching
from dmae.retrieval.duplicates import Frames, Pair, Passage
from dmae.retrieval.timeline import Timeline
from dmae.retrieval.windows import WindowPlan

# ---- what two videos share --------------------------------------------------------------------------------------


def frames(places_of: list[int], first: float = 0.0, width: int = 40, **about) -> Frames:
    """One frame a second; frames of equal number are equal, all others at right angles."""
    times = first + np.arange(len(places_of), dtype=float)
    return Frames(times, np.eye(width)[places_of], about.get("start", first), about.get("end", times[-1] + 1))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([0, 1, 2, 3, 4], [9, 0, 1, 2, 8, 10, 11], [((0.0, 2.0), (1.0, 3.0))]),
        ([0, 1, 5, 6], [9, 0, 1, 7], []),  # two frames are too few
        ([0, 1, 2, 3], [3, 2, 1, 0], []),  # in reverse
        ([20, 21, 22, 0, 1, 2, 23, 24, 25, 3, 4, 26], [30, 31, 32, 0, 1, 2, 33, 34, 35, 36, 37, 3],
         [((3.0, 5.0), (3.0, 5.0))]),
        ([5, 0, 1, 2, 6, 3, 4, 9], [3, 4, 9, 10, 11, 12, 0, 1, 2, 13],
         [((1.0, 3.0), (6.0, 8.0)), ((5.0, 7.0), (0.0, 2.0))]),
        ([0, 1, 5, 6, 2, 3], [0, 1, 7, 8, 2, 3], [((0.0, 5.0), (0.0, 5.0))]),  # a gap of twice the tolerance
        ([0, 1, 5, 6, 7, 2, 3, 4, 20, 21, 22], [0, 1, 8, 9, 10, 2, 3, 4, 30, 31, 32],  # and one of more
         [((5.0, 7.0), (5.0, 7.0))]),
    ],
)  # fmt: skip
def test_a_passage_is_a_run_of_matches_at_one_offset(one, other, expected):
    found = duplicates.shared_passages(frames(one), frames(other), 0.9)
    assert [(passage.first, passage.second) for passage in found] == expected
    assert all(passage.likeness == 1.0 and isinstance(passage.first[0], float) for passage in found)


def test_frames_at_two_offsets_are_two_passages_and_near_offsets_one():
    """An offset may wander by one and a half usual steps: frames are taken on another grid in each video."""
    ten, step = np.eye(40)[:10], np.arange(10) * 0.5
    one, other = Frames(step, ten, 0.0, 5.0), Frames(step + 2.0 * (step > 2), ten, 0.0, 7.0)
    assert [passage[:2] for passage in duplicates.shared_passages(one, other, 0.9)] == [
        ((0.0, 2.0), (0.0, 2.0)), ((2.5, 4.5), (4.5, 6.5)),
    ]  # fmt: skip
    one, other = Frames(2 * step, ten, 0.0, 10.0), Frames(2 * step + 1.5 * (step > 2), ten, 0.0, 11.5)
    assert [passage[:2] for passage in duplicates.shared_passages(one, other, 0.9)] == [((0.0, 9.0), (0.0, 10.5))]


def test_a_passage_lasts_and_changes():
    still = [3] * 5
    assert duplicates.shared_passages(frames(still), frames(still), 0.9) == []
    quick = frames([0, 1, 2, 3])._replace(times=np.arange(4) * 0.3, end=1.2)
    assert duplicates.shared_passages(quick, quick, 0.9) == [], "0.9 seconds are too short"
    enough = quick._replace(times=np.arange(4) / 3, end=4 / 3)
    (found,) = duplicates.shared_passages(enough, enough, 0.9)
    assert found.seconds == pytest.approx(1.0)
    blurred = frames([0, 1, 2, 3, 4])
    blurred = blurred._replace(vectors=0.95 * blurred.vectors)
    (found,) = duplicates.shared_passages(frames([0, 1, 2, 3, 4]), blurred, 0.95)
    assert found.likeness == pytest.approx(0.95)
    assert duplicates.shared_passages(frames([0, 1, 2, 3, 4]), blurred, 0.96) == []


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 10), (0, 10), True), ((2, 10), (2, 12), True), ((3, 10), (2, 10), False), ((2, 10), (3, 12), False),
        ((50, 58), (90, 98), True), ((48, 57), (88, 97), False), ((50, 58), (87, 97), False),
        ((0, 28.9), (0, 28.9), True), ((0, 29), (0, 29), False), ((0, 10), (90, 100), False),
    ],
)  # fmt: skip
def test_what_opens_or_ends_both_is_no_passage(first, second, expected):
    one, other = (Frames(np.arange(3.0), np.eye(3), 0.0, float(end)) for end in (60, 100))
    late = Frames(np.arange(3.0), np.eye(3), 50.0, 80.0)  # of 30 seconds
    for seconds, is_frame in ((13.5, True), (14.5, False)):
        shared = Passage((0.0, seconds), (50.0, 50.0 + seconds), 1.0)
        assert duplicates._is_frame_of_both(shared, one, late, 1.0) is is_frame
        turned = Passage(shared.second, shared.first, 1.0)
        assert duplicates._is_frame_of_both(turned, late, one, 1.0) is is_frame
    passage = Passage(tuple(map(float, first)), tuple(map(float, second)), 1.0)
    assert duplicates._is_frame_of_both(passage, one, other, 1.0) is expected


def test_an_opening_may_begin_two_steps_late():
    one = Frames(np.arange(3.0), np.eye(3), 0.0, 60.0)
    found = [duplicates._is_frame_of_both(Passage((at, 9.0), (at, 9.0), 1.0), one, one, 2.0) for at in (4.0, 4.1)]
    assert found == [True, False]


def test_near_duplicates_share_four_fifths_of_the_shorter_one():
    one, other = Frames(np.arange(3.0), np.eye(3), 10.0, 30.0), Frames(np.arange(0, 6, 2.0), np.eye(3), 0.0, 100.0)
    assert (one.step, other.step, Frames(np.zeros(1), np.eye(1), 0, 0).step) == (1.0, 2.0, 0.0)
    assert Frames(np.array([1.0, 2.5]), np.eye(2), 0, 4).step == 1.5
    halves = lambda seconds: [Passage((0, seconds / 2), (0, seconds / 2), 1.0)] * 2  # noqa: E731
    for pair in ((one, other), (other, one)):
        assert [duplicates._covers(halves(seconds), *pair) for seconds in (13.9, 14.0)] == [False, True]
    pair = Pair("near duplicate", "a", "b", ("/a", "/b"), [Passage((0.0, 1.0), (2.0, 3.0), 0.98765)])
    assert pair.to_dict() == {
        "kind": "near duplicate", "videos": ["a", "b"], "paths": ["/a", "/b"],
        "passages": [{"first": (0.0, 1.0), "second": (2.0, 3.0), "likeness": 0.9877}],
    }  # fmt: skip
    for wrong in (0, -1, 1.01):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            duplicates.find_duplicates([], wrong)
    assert duplicates.find_duplicates([], 1.0) == [] == duplicates.find_duplicates(["one row"])


# ---- shots and stretches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_cut_stands_out_from_the_five_changes_on_either_side(seed, monkeypatch):
    changes = np.random.default_rng(seed).random(60) ** 3
    places = 2 * np.concatenate([[0.0], np.cumsum(changes)])[:, None]  # histograms that differ by that much
    monkeypatch.setattr(shots, "_histograms", lambda frames: places)
    expected = []
    for place, change in enumerate(changes):
        around = [other for n, other in enumerate(changes) if n != place and abs(n - place) <= 5]
        expected += [place + 1] if change > 0.25 and change > 2.5 * np.median(around) else []
    assert shots.cuts(torch.zeros(61, 3, 1, 1)).tolist() == expected and len(expected) > 2


def test_short_shots_go_with_their_neighbours():
    times = np.arange(20.0)
    for starts, end, expected in (
        ([0, 2, 3, 8], 20.0, [0, 2, 8]), ([0, 1, 2], 20.0, [0, 2]), ([0, 18], 19.5, [0]), ([0, 18], 20.0, [0, 18]),
        ([0], 1.0, [0]), ([5, 6, 7], 9.0, [5, 7]), ([0, 8, 16], 17.5, [0, 8]),
    ):  # fmt: skip
        assert shots._long_enough(times, starts, end) == expected


def test_a_shot_is_cut_into_halves_that_overlap():
    times = np.arange(0, 40) * 0.5
    for first, end, expected in (
        (0, 10.0, [(0.0, 10.0)]), (0, 10.1, [(0.0, 10.0), (5.0, 10.1)]),
        (0, 19.0, [(0.0, 10.0), (5.0, 15.0), (10.0, 19.0)]),
        (4, 6.0, [(2.0, 6.0)]), (4, 12.0, [(2.0, 12.0)]),
    ):  # fmt: skip
        assert shots._pieces(times[first:], end) == expected
    assert shots._pieces(np.array([0.0, 9.0, 20.0]), 25.0) == [(0.0, 10.0), (9.0, 19.0), (20.0, 25.0)]
    assert shots.stretches(0.0, 44.9) == [(0.0, 44.9)]
    assert shots.stretches(1.0, 46.0) == [(1.0, 31.0), (31.0, 46.0)]
    assert shots.stretches(0.0, 5.0) == [(0.0, 5.0)]


def test_windows_of_shots_have_their_frames_thinned_and_what_is_done_left_out():
    times = np.arange(24.0)
    picture = torch.zeros(24, 3, 8, 8, dtype=torch.uint8)
    picture[9:] = 255
    windows = shots.FollowShots(24.0, 4)(times, picture)
    assert [(start, end) for start, end, _ in windows] == [(0.0, 9.0 - shots.BEFORE), (9.0, 19.0), (14.0, 24.0)]
    assert [inside.tolist() for *_, inside in windows] == [[0, 2, 5, 8], [9, 12, 15, 19], [14, 17, 20, 23]]
    rest = shots.FollowShots(24.0, 99, frozenset({(9.0, 19.0)}))(times, picture)
    assert [(start, inside.tolist()) for start, _, inside in rest] == [(0.0, [*range(9)]), (14.0, [*range(14, 24)])]
    assert shots.cuts(picture).tolist() == [9] and shots.cuts(picture[:1]).tolist() == []
    assert shots.cuts(picture[8:10]).tolist() == [1]
    uneven = 1 / 3 + np.arange(24) / 3
    assert shots.FollowShots(26 / 3, 99, frozenset({(0.333, 8.667)}))(uneven, picture[:9]) == [], "to a thousandth"
    quarter = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
    quarter[3:, :, :4, :4] = 255
    assert shots.cuts(quarter).tolist() == [], "a quarter of the picture is no cut"
    quarter[3:, :, :4, :5] = 255
    assert shots.cuts(quarter).tolist() == [3]
    rows = shots._histograms(torch.full((2, 3, 4, 4), 64, dtype=torch.uint8))
    assert rows.shape == (2, 96) and rows.sum(1).tolist() == pytest.approx([1, 1])
    assert np.flatnonzero(rows[0]).tolist() == [cell * 8 + 2 for cell in range(12)]


SAMPLER = SimpleNamespace(sampling="fps", key_frames=False, num_frames=12)


def test_which_windows_are_decoded_together():
    item = {"video_id": "v", "path": "p", "error": None}
    timeline = Timeline(0.0, 50.0)
    items = list(stretching.stretches_of(item, timeline, WindowPlan(10, 10), SAMPLER, {(10.0, 20.0)}))
    assert [(one["start"], one["end"], one.get("windows")) for one in items] == [
        (0.0, 30.0, [(0.0, 10.0), (20.0, 30.0)]), (30.0, 50.0, [(30.0, 40.0), (40.0, 50.0)]),
    ]  # fmt: skip
    whole = list(stretching.stretches_of(item, timeline, WindowPlan(10, 10), SAMPLER, set()))
    assert [(one["start"], one["end"], len(one["windows"]), one["last"]) for one in whole] == [
        (0.0, 30.0, 3, False), (30.0, 50.0, 2, True),
    ]  # fmt: skip
    for plan, done in ((WindowPlan(10, 10), (0.0, 10.0)), (WindowPlan(10 / 3, 10 / 3), (3.333, 6.667))):
        left = stretching.stretches_of(item, timeline, plan, SAMPLER, {done})
        cut = [window for one in left for window in one.get("windows", [(one["start"], one["end"])])]
        assert cut == [w for w in plan.cut((0.0, 50.0)) if (round(w[0], 3), round(w[1], 3)) != done], "left out"
    for change in ({"key_frames": True}, {"sampling": "segment_random"}, {"error": "bad"}):
        sampler = SimpleNamespace(**{**vars(SAMPLER), **change})
        odd = {**item, "error": change.get("error")}
        alone = list(stretching.stretches_of(odd, timeline, WindowPlan(25, 10), sampler, set()))
        assert [(one["start"], one["end"]) for one in alone] == [(0.0, 25.0), (10.0, 35.0), (20.0, 45.0), (30.0, 50.0)]
        assert not stretching._follows_shots(odd, Timeline(0.0, 99.0), WindowPlan(), sampler)
    assert len(list(stretching.stretches_of({**item, "error": "bad"}, None, WindowPlan(), SAMPLER, set()))) == 1


def test_when_windows_follow_the_shots():
    item = {"video_id": "v", "path": "p", "error": None}

    def follows(timeline, plan=None, **more):
        return stretching._follows_shots({**item, **more}, timeline, plan or WindowPlan(), SAMPLER)

    long = Timeline(10.0, 70.5)
    assert follows(long) and not follows(Timeline(10.0, 70.0)) and not follows(long, WindowPlan(10))
    assert not follows(long, clip=[1, 2]) and not follows(long, error="bad")
    assert not follows(long._replace(times=np.arange(3.0)))
    parts = list(stretching.stretches_of(item, long, WindowPlan(), SAMPLER, set()))
    before = shots.BEFORE
    assert [(one["start"], one["end"], one["last"]) for one in parts] == [
        (10.0, 40.0 - before, False),
        (40.0, 70.5, True),
    ]
    assert {one["span"] for one in parts} == {(10.0, 70.5)} and parts[1]["split"].end == 70.5
    assert parts[1]["windows"][0] == (40.0, 50.0) and parts[1]["windows"][-1][1] == 70.5
    done = {(10.0, 20.0), (35.0, 40.0 - before)}
    (rest,) = stretching.stretches_of(item, long, WindowPlan(), SAMPLER, done)
    assert rest["start"] == 40.0 and rest["split"].done == frozenset(done) and rest["split"].num_frames == 12
    assert len(list(stretching.stretches_of(item, long, WindowPlan(), SAMPLER, {(10.0, 20.0)}))) == 2


# ---- files and folders ------------------------------------------------------------------------------------------


def test_roots_and_what_lies_below_them(tmp_path, monkeypatch):
    (tmp_path / "a" / "films").mkdir(parents=True), (tmp_path / "b" / "films").mkdir(parents=True)
    first, second = str(tmp_path / "a" / "films"), str(tmp_path / "b" / "films")
    roots = places.with_root({}, first)
    assert roots == {"films": first} and places.with_root(roots, first) == roots
    more = places.with_root(roots, second)
    assert more == {"films": first, "films-2": second} and places.with_root({}, "/") == {"root": "/"}
    (tmp_path / "c" / "films").mkdir(parents=True)
    assert list(places.with_root(more, tmp_path / "c" / "films")) == ["films", "films-2", "films-3"]
    assert places.with_root(roots, tmp_path / "a" / "films" / "x") == roots
    row = {
        "path": f"{first}/x/y.mp4",
        "copies": [{"path": f"{second}/z.mp4", "signature": [1]}, {"path": "/else", "signature": [2]}],
    }
    kept = places.stored(row, {**more, "outer": str(tmp_path)})
    assert kept == {
        "path": "x/y.mp4", "root": "films",
        "copies": [{"path": "z.mp4", "root": "films-2", "signature": [1]}, {"path": "/else", "signature": [2]}],
    }  # fmt: skip
    assert places.located(kept, more) == row and "root" in kept, "the stored row is left as it is"
    moved = places.remapped(more, [f"films={tmp_path / 'c'}", f"{second}={tmp_path / 'b'}"])
    assert moved == {"films": str(tmp_path / "c"), "films-2": str(tmp_path / "b")} and more["films"] == first
    assert places.located(kept, moved)["path"] == f"{tmp_path / 'c'}/x/y.mp4"
    assert places.located({"path": "x", "root": "gone"}, more) == {"path": "x"}
    for wrong in ("films", f"other={first}", "films=/no/such/folder"):
        with pytest.raises(ValueError, match=r"give OLD=NEW.*the index has: films="):
            places.remapped(more, [wrong])
    with pytest.raises(ValueError, match="the index has: none"):
        places.remapped({}, ["a=b"])
    assert (places._below("/a", "/a"), places._below("/ab", "/a"), places._below("/a/b", "/")) == ("", None, "a/b")
    with monkeypatch.context() as windows:
        windows.setattr(places, "os", SimpleNamespace(sep="\\"))
        assert places._below("C:\\a\\b\\c.mp4", "C:\\a") == "b/c.mp4", "an index is read on any system"
    (tmp_path / "file").write_text("")
    gone = [places.is_gone(str(path)) for path in (tmp_path, tmp_path / "no", tmp_path / "file" / "x", "\0")]
    assert gone == [False, True, True, False]


def test_contents_that_differ_anywhere_in_a_small_file_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "SAMPLE", 4)
    ids = []
    for content in (
        b"",
        b"0123",
        b"0123456789abcdef",
        b"x123456789abcdef",
        b"0123456x89abcdef",
        b"0123456789abcdex",
        b"0123x56789abcdef",
    ):
        (tmp_path / "f").write_bytes(content)
        ids.append(places.content_id(tmp_path / "f"))
    assert [one.split("-")[0] for one in ids] == ["0", "4", "16", "16", "16", "16", "16"]
    assert len(set(ids[:6])) == 6 and ids[6] == ids[2], "between the samples nothing is read"
    assert all(len(one.split("-")[1]) == 32 for one in ids)
    # they are written in every index: with other ones, all of its videos would be embedded again
    assert ids[:3] == [
        "0-cae66941d9efbd404e4d88758ea67670",
        "4-ba6623e753ac26bd53447217c45cb3b8",
        "16-5c7f27bc7391e81ae6b48b05d27e692a",
    ]


def test_events_that_an_index_follows(tmp_path):
    for kind, source, target, folder, expected in (
        ("created", "a.mp4", "", False, True), ("modified", "a.MKV", "", False, True),
        ("deleted", "a.srt", "", False, True),
        ("closed", "metadata.jsonl", "", False, True), ("moved", "a.part", "a.mp4", False, True),
        ("created", "a.txt", "", False, False), ("opened", "a.mp4", "", False, False), ("moved", "x", "y", True, True),
        ("modified", "x", "", True, False), ("closed_no_write", "a.mp4", "", False, False),
    ):  # fmt: skip
        changed = threading.Event()
        event = FileSystemEvent(str(tmp_path / source), str(tmp_path / target) if target else "")
        event.event_type, event.is_directory = kind, folder
        watching._Handler(changed).on_any_event(event)
        assert changed.is_set() is expected, (kind, source)


def test_a_burst_is_waited_for_but_not_for_ever(monkeypatch):
    now, waits, changed = [200.0], [], threading.Event()

    def wait(seconds):
        waits.append(seconds)
        now[0] += seconds
        if len(waits) < 3 or endless:
            changed.set()

    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: now[0]))
    stop = SimpleNamespace(is_set=lambda: False, wait=wait)
    endless = False
    changed.set()
    watching._settled(changed, stop, 5.0)
    assert waits == [5.0] * 3 and not changed.is_set()
    waits.clear(), changed.set()
    endless, now[0] = True, 200.0
    watching._settled(changed, stop, 100.0)
    assert waits == [100.0] * 3 and not changed.is_set()
    waits.clear(), changed.set()
    watching._settled(changed, SimpleNamespace(is_set=lambda: True, wait=wait), 5.0)
    assert waits == [] and not changed.is_set()


class Looking:
    """An observer that tells what it was asked."""

    def __init__(self, told: list, *about):
        self.told = told
        told.append(about)

    def __getattr__(self, name: str):
        return lambda *arguments, **options: self.told.append((name, *arguments[1:], *options.items()))


def test_a_watch_updates_at_once_and_after_every_burst_until_it_is_stopped(tmp_path, monkeypatch):
    """The system tells of changes, or the folder is looked at every few seconds; folders below it too."""
    told, stop = [], threading.Event()
    monkeypatch.setattr(watching, "Observer", lambda: Looking(told, "told"))
    monkeypatch.setattr(watching, "PollingObserver", lambda timeout: Looking(told, "looks", timeout))
    around = [("schedule", str(tmp_path), ("recursive", True)), ("start",), "update", ("stop",), ("join",)]
    for poll, kind in ((0.0, ("told",)), (2.5, ("looks", 2.5))):
        told.clear(), stop.clear()
        watching.watch(tmp_path, lambda: (told.append("update"), stop.set()), stop, poll=poll)
        assert told == [kind, *around]
    told.clear(), stop.clear()
    changes = threading.Event()
    changes.set()
    monkeypatch.setattr(watching, "threading", SimpleNamespace(Event=lambda: changes))

    def settled(changed, stopped, settle):
        told.append(("settled", changed is changes, stopped is stop, settle))
        changes.clear()
        if told.count("update") == 3:
            stop.set()

    def update():
        told.append("update")
        changes.set()

    monkeypatch.setattr(watching, "_settled", settled)
    watching.watch(tmp_path, update, stop, settle=1.5)
    waited = ("settled", True, True, 1.5)
    assert told[3:-2] == ["update", waited, "update", waited, "update", waited], "nothing is done once it is stopped"

    def fails():
        raise OSError("gone")

    told.clear(), stop.clear()
    with pytest.raises(OSError, match="gone"):
        watching.watch(tmp_path, fails, stop)
    assert told[-2:] == [("stop",), ("join",)]
