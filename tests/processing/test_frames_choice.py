"""Choosing frames is a pure function of times: no video is needed to test it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmae.processing.choice_dmae import every_frame
from dmae.processing.frames_dmae import SAMPLINGS, choose_frames

SECONDS_30 = np.arange(900) / 30


def chosen_times(times, *args, **kwargs):
    times = np.asarray(times, dtype=np.float64)
    return times[choose_frames(times, *args, **kwargs)].tolist()


def test_one_frame_per_second_by_time():
    assert chosen_times(np.arange(125) / 25, 12) == [0, 1, 2, 3, 4]
    assert chosen_times(SECONDS_30, 64) == list(range(30))


def test_the_frame_shown_at_a_moment_is_the_last_one_that_began():
    ntsc = np.arange(300) * 1001 / 30000
    assert chosen_times(ntsc, 12)[:3] == [ntsc[0], ntsc[29], ntsc[59]]  # frame 30 begins at 1.001 s
    assert chosen_times([0, 0.9, 1.1, 5.0, 5.1], 12) == [0, 0.9, 1.1, 5.0]  # a still from 1.1 to 5 s counts once


def test_times_rounded_to_milliseconds_still_stand_for_their_second():
    assert chosen_times([0.0, 0.5, 0.9996, 1.5, 2.0004], 12) == [0.0, 0.9996, 2.0004]


def test_more_moments_than_frames_are_thinned_evenly_to_both_ends():
    chosen = chosen_times(SECONDS_30, 12)
    assert len(chosen) == 12 and chosen[0] == 0 and chosen[-1] == 29
    assert set(np.diff(chosen)) == {2.0, 3.0}


def test_streams_that_start_above_zero_or_below():
    assert chosen_times(SECONDS_30 + 1.4, 4) == chosen_times(SECONDS_30 + 1.4, 4, start=0)
    np.testing.assert_allclose(chosen_times(SECONDS_30 - 5, 64), np.arange(30) - 5.0)


def test_uniform_and_segments():
    times = np.arange(100) / 10
    assert chosen_times(times, 4, "uniform") == [0.0, 3.3, 6.6, 9.9]
    assert chosen_times(times, 4, "segment_center") == [1.2, 3.7, 6.2, 8.7]
    assert chosen_times(times, 4, "segment_start") == [0.0, 2.5, 5.0, 7.5]
    assert chosen_times(times, 4, "segment_start", end=5.05) == [0.0, 1.2, 2.5, 3.7], "segments end with the window"
    assert chosen_times(times, 1, "segment_center", start=9.85) == [9.9] and chosen_times([3.0], 2, "uniform") == [3.0]
    for _ in range(200):
        before = torch.get_rng_state()
        draw = chosen_times(times, 4, "segment_random")
        torch.set_rng_state(before)
        moments = (np.arange(4) + torch.rand(4).numpy()) * 2.5
        # the frame shown then: half a millisecond before the next one begins it may be the next one already
        assert all(time - 6.1e-4 <= moment < time + 0.1 for time, moment in zip(draw, moments))


def test_random_segments_repeat_with_a_generator():
    first, second = (
        chosen_times(SECONDS_30, 8, "segment_random", generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert first == second


def test_window():
    assert chosen_times(SECONDS_30, 12, start=5, end=10) == [5, 6, 7, 8, 9, 10]
    assert chosen_times(SECONDS_30, 12, start=28.5) == [28.5, 29.5]
    assert chosen_times(SECONDS_30, 2, "uniform", end=3) == [0, 3]
    assert chosen_times([0, 10, 20], 12, start=12, end=13) == [10], "the still shown then"
    assert chosen_times(SECONDS_30, 12, start=29.98, end=31) == [SECONDS_30[-1]], "the last frame lasts until 30 s"
    assert chosen_times(SECONDS_30, 12, start=30.01, end=50) == []
    assert chosen_times(SECONDS_30 + 5, 12, start=1, end=2) == []


def test_a_window_between_two_frames_shows_the_one_that_began_before_it():
    assert chosen_times([0, 10], 12, start=15, end=16) == [10], "the last frame lasts as long as the first"
    assert chosen_times([0, 10], 12, start=20, end=21) == [] == chosen_times([0], 12, start=0.5)
    assert chosen_times([0, 10, 20], 12, start=10, end=9) == [10]
    assert chosen_times([0, 10, 20], 12, start=-2, end=-1) == []
    assert chosen_times([100, 101, 102], 12, start=102.9, end=109) == [102] and not chosen_times(
        [100, 101], 9, start=102.1
    )


def test_every_frame_of_a_window_is_taken_or_none():
    times = np.arange(20) / 10
    assert every_frame(times, 20).tolist() == list(range(20))
    assert every_frame(times, 3, 0.5, 0.7).tolist() == [5, 6, 7] and every_frame(times, 9, start=1.1).tolist() == [
        *range(11, 20)
    ]
    with pytest.raises(ValueError, match="the video has 3 frames where num_frames=2 is the most; let them be sampled"):
        every_frame(times, 2, 0.5, 0.7)


times_lists = st.lists(st.integers(-1000, 9000), min_size=1, max_size=60, unique=True).map(sorted)


@given(
    times_lists,
    st.integers(1, 20),
    st.sampled_from(SAMPLINGS),
    st.floats(0.1, 30),
    st.one_of(st.none(), st.floats(-100, 900)),
    st.one_of(st.none(), st.floats(0.5, 100)),
)
def test_indices_are_distinct_ascending_and_in_the_window(times, num_frames, sampling, fps, start, length):
    end = None if length is None else (start or 0.0) + length
    times = np.array(times) / 10
    chosen = choose_frames(times, num_frames, sampling, fps, start, end)
    assert len(chosen) <= num_frames and (np.diff(chosen) > 0).all()
    inside = [time for time in times if (start is None or time >= start) and (end is None or time <= end)]
    if inside:
        assert len(chosen) > 0 and all(inside[0] <= time <= inside[-1] for time in times[chosen])
        if sampling == "fps" or (sampling == "uniform" and num_frames > 1):
            assert times[chosen][0] == inside[0]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_short_videos(sampling, count):
    assert 1 <= len(chosen_times(np.arange(count) / 25, 12, sampling)) <= count
