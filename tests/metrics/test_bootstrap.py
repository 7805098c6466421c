"""Intervals must hold the metric, narrow with more data, respect captions of one video, and pair two models."""

import numpy as np
import pytest

from dmae.metrics.text_video_retrieval.bootstrap import bootstrap_intervals, paired_difference
from dmae.metrics.text_video_retrieval.retrieval_metrics import summarize_ranks


def ranks(videos, captions=1, seed=0):
    random = np.random.default_rng(seed)
    per_video = random.integers(1, 20, videos).astype(float)
    gold = np.repeat(np.arange(videos), captions)
    return per_video[gold], per_video, gold


def test_intervals_hold_the_metric_and_narrow_with_more_videos():
    widths = []
    for videos in (50, 800):
        text, video, gold = ranks(videos)
        intervals = bootstrap_intervals(text, video, gold, summarize_ranks, samples=200)
        for name, value in summarize_ranks(text, video).items():
            assert intervals[name][0] <= value <= intervals[name][1], name
        low, high = intervals["text_to_video_mean_rank"]
        widths.append(high - low)
    assert 0 < widths[1] < widths[0] / 2


def test_the_interval_of_a_share_is_that_of_theory():
    """R@1 of n independent queries has the standard error sqrt(p(1-p)/n)."""
    videos = 400
    text = np.where(np.arange(videos) < videos // 4, 1.0, 50.0)
    low, high = bootstrap_intervals(text, text, np.arange(videos), summarize_ranks, samples=2000)["text_to_video_R@1"]
    expected = 2 * 1.96 * np.sqrt(0.25 * 0.75 / videos)
    assert high - low == pytest.approx(expected, rel=0.1)


def test_captions_that_agree_add_no_certainty():
    """Ten captions a video that all rank alike say as much as one: drawing captions singly would claim √10 more."""
    one = bootstrap_intervals(*ranks(60), summarize_ranks, samples=300)
    ten = bootstrap_intervals(*ranks(60, captions=10), summarize_ranks, samples=300)
    assert ten["text_to_video_mean_rank"] == pytest.approx(one["text_to_video_mean_rank"])


def test_a_difference_of_a_model_with_itself_is_nothing_and_pairing_removes_shared_noise():
    text, video, gold = ranks(80)
    assert set(paired_difference((text, video), (text, video), gold, summarize_ranks, samples=50).values()) == {(0, 0)}
    shifted = paired_difference((text + 1, video + 1), (text, video), gold, summarize_ranks, samples=50)
    assert shifted["text_to_video_mean_rank"] == pytest.approx((1, 1))


def test_the_same_seed_gives_the_same_interval_and_bad_settings_are_refused():
    text, video, gold = ranks(30)
    assert bootstrap_intervals(text, video, gold, summarize_ranks, 20) == bootstrap_intervals(
        text, video, gold, summarize_ranks, 20
    )
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap_intervals(text, video, gold, summarize_ranks, samples=1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_intervals(text, video, gold, summarize_ranks, samples=5, confidence=95)
    with pytest.raises(ValueError, match="as many ranks"):
        bootstrap_intervals(text[1:], video, gold, summarize_ranks, samples=5)


def test_a_draw_holds_as_many_videos_each_with_all_its_captions():
    """Captions in no order and of unequal number; every rank tells whose it is."""
    gold = np.array([4, 0, 4, 2, 0, 4, 7])
    text_ranks = gold * 10.0 + np.arange(7)
    seen = []

    def summarize(texts, videos):
        seen.append((texts, videos))
        return {"texts": len(texts), "sum": texts.sum() - videos.sum()}

    found = bootstrap_intervals(text_ranks, np.array([100.0, 102, 104, 107]), gold, summarize, samples=60)
    assert list(found) == ["texts", "sum"] and len(seen) == 60
    for texts, videos in seen:
        assert len(videos) == 4
        expected = [rank for video in videos - 100 for rank in text_ranks[gold == video]]
        np.testing.assert_array_equal(texts, expected)
    assert {video for _, videos in seen for video in videos} == {100, 102, 104, 107}
    assert len({tuple(videos) for _, videos in seen}) > 30


@pytest.mark.parametrize("confidence, expected", [(0.9, (5.0, 95.0)), (0.5, (25.0, 75.0))])
def test_an_interval_leaves_as_much_out_on_either_side(confidence, expected):
    """The draws are 0, 1, … 100 in some order: what is left out can be counted."""
    values = iter(np.random.default_rng(0).permutation(101).tolist())
    text, video, gold = ranks(5)
    found = bootstrap_intervals(text, video, gold, lambda *_: {"x": next(values)}, 101, confidence)
    assert found["x"] == pytest.approx(expected)


def test_two_draws_are_the_fewest_and_a_confidence_lies_inside():
    text, video, gold = ranks(5)
    assert len(bootstrap_intervals(text, video, gold, summarize_ranks, samples=2)) == 12
    for confidence in (0, 1, 1.5, -0.1):
        with pytest.raises(ValueError, match=f"confidence={confidence} must lie between 0 and 1"):
            bootstrap_intervals(text, video, gold, summarize_ranks, 5, confidence)
        with pytest.raises(ValueError, match=f"confidence={confidence} must lie between 0 and 1"):
            paired_difference((text, video), (text, video), gold, summarize_ranks, 5, confidence)
    with pytest.raises(ValueError, match=r"^5 texts of 5 videos need as many ranks, got 5 and 4$"):
        bootstrap_intervals(text, video[1:], gold, summarize_ranks, samples=5)
