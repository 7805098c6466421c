"""Where long videos are cut, and how hits of neighbouring windows become one moment."""

from itertools import pairwise

import numpy as np
import pytest

from dmae.retrieval.windows import Hit, WindowPlan, merge_hits


@pytest.mark.parametrize(
    "plan, span, expected",
    [
        (WindowPlan(10, 5), (0, 13), [(0, 10), (5, 13)]),
        (WindowPlan(10, 10), (0, 30), [(0, 10), (10, 20), (20, 30)]),
        (WindowPlan(10, 5), (2, 14), [(2, 12), (7, 14)]),
        (WindowPlan(10, 5), (0, 9), [(None, None)]),
        (WindowPlan(10, 5), (2, 12), [(None, None)]),
        (WindowPlan(10), None, [(None, None)]),
        (WindowPlan(0), (0, 1000), [(None, None)]),
        (WindowPlan(), (0, 60), [(None, None)]),
        (WindowPlan(), (0, 65), [(n * 5, min(n * 5 + 10, 65)) for n in range(12)]),
    ],
)
def test_cuts(plan, span, expected):
    assert list(plan.cut(span)) == expected


def test_every_second_is_in_some_window():
    windows = list(WindowPlan(3, 2).cut((0, 11.5)))
    assert windows[0][0] == 0 and windows[-1][1] == 11.5
    assert all(later[0] <= earlier[1] for earlier, later in pairwise(windows))


@pytest.mark.parametrize("seed", range(5))
def test_windows_follow_the_frames_of_a_video_with_gaps(seed):
    random = np.random.default_rng(seed)
    plan, span = WindowPlan(float(random.uniform(1, 9)), float(random.uniform(0.3, 1))), (3.0, 200.0)
    times = np.sort(random.choice([random.uniform(3, 30), random.uniform(150, 200), *random.uniform(3, 200, 4)], 4))
    slow = [cut for cut in plan.cut(span) if any(cut[0] - 1e-6 <= time <= cut[1] + 1e-6 for time in times)]
    assert list(plan.cut(span, times)) == slow


def test_a_frame_on_the_edge_of_windows_is_in_both():
    """Seconds are no exact binary numbers: 0.3 / 0.1 is a little less than 3."""
    plan = WindowPlan(0.1, 0.1)
    assert [round(start, 3) for start, _ in plan.cut((0.0, 1.0), np.array([0.3]))] == [0.2, 0.3]
    assert list(WindowPlan(2, 1).cut((0.0, 5.0), np.array([5.0]))) == [(3.0, 5.0)]
    assert list(WindowPlan(2, 1).cut((0.0, 4.5), np.array([4.4]))) == [(3.0, 4.5)]


def test_a_claimed_age_of_the_universe_costs_as_many_windows_as_its_frames_have():
    times = np.array([0.0, 4e17])
    assert len(list(WindowPlan(10, 5).cut((0.0, 4e17), times))) <= 6


@pytest.mark.parametrize(
    "window, stride", [(-1, None), (float("nan"), None), (float("inf"), None), (10, 11), (10, 0), (0, 5), (None, 5)]
)
def test_bad_plans_are_refused(window, stride):
    with pytest.raises(ValueError, match=r"window|stride"):
        WindowPlan(window, stride)


HITS = [
    Hit("a", 0.50, 0, 10, 0),
    Hit("a", 0.49, 5, 15, 1),
    Hit("a", 0.30, 10, 20, 2),
    Hit("a", 0.45, 40, 50, 3),
    Hit("b", 0.40, 0, 10, 4),
]


def test_a_score_at_the_margin_is_still_one_of_the_moment():
    hits = [Hit("a", 1.0, 0, 10, 0), Hit("a", 0.5, 10, 20, 1), Hit("a", 0.49, 20, 30, 2)]
    assert merge_hits(hits, 9, 9, margin=0.5) == [Hit("a", 1.0, 0, 20, 0), hits[2]]


def test_neighbours_of_like_score_become_one_moment():
    first, second = merge_hits(HITS, top_k=5)
    assert (first.video, first.score, first.start, first.end) == ("a", 0.50, 0, 15)
    assert second.video == "b"


def test_several_moments_of_one_video_where_asked_for():
    moments = merge_hits(HITS, top_k=5, hits_per_video=2)
    assert [(hit.video, hit.start, hit.end) for hit in moments] == [("a", 0, 15), ("a", 40, 50), ("b", 0, 10)]


def test_top_k_counts_moments():
    assert len(merge_hits(HITS, top_k=1, hits_per_video=3)) == 1


def test_a_moment_and_what_overlaps_it_are_never_two_hits():
    """Whatever the scores: half of a second hit would be the first one again."""
    random = np.random.default_rng(3)
    for _ in range(50):
        hits = [Hit("a", float(random.uniform()), 5.0 * n, 5.0 * n + 10, n) for n in range(12)]
        spans = sorted((hit.start, hit.end) for hit in merge_hits(hits, top_k=12, hits_per_video=12))
        assert all(earlier[1] <= later[0] for earlier, later in pairwise(spans))
