"""Every caption once per epoch, no video twice in a batch, nothing lost between ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmae.training.sampler import Schedule, epoch_pairs, global_batches, rank_share

COUNTS = st.lists(st.integers(1, 9), min_size=2, max_size=40)


@settings(max_examples=80, deadline=None)
@given(COUNTS, st.integers(2, 12), st.integers(0, 5))
def test_each_caption_once_and_no_video_twice_in_a_batch(counts, size, epoch):
    batches = global_batches(epoch_pairs(counts, seed=3, epoch=epoch), size)
    seen = sorted((pair.row, pair.caption) for batch in batches for pair in batch)
    assert seen == [(row, caption) for row, count in enumerate(counts) for caption in range(count)]
    for batch in batches:
        assert len({pair.row for pair in batch}) == len(batch) <= size


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 50), st.integers(1, 8))
def test_rank_shares_join_to_the_batch_and_differ_by_at_most_one(size, world):
    shares = [rank_share(list(range(size)), rank, world) for rank in range(world)]
    assert [place for share in shares for place in share] == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_caption_per_epoch_shows_every_video_once_and_other_captions_later():
    epochs = [epoch_pairs([5] * 30, seed=1, epoch=epoch, captions="one") for epoch in range(8)]
    for pairs in epochs:
        assert sorted(pair.row for pair in pairs) == list(range(30))
    assert len({pair.caption for pairs in epochs for pair in pairs if pair.row == 0}) > 1
    assert [pair.row for pair in epochs[0]] != [pair.row for pair in epochs[1]]


def test_captions_of_a_video_are_spread_over_the_epoch():
    pairs = epoch_pairs([20] * 50, seed=0, epoch=0)
    places = np.array([place for place, pair in enumerate(pairs) if pair.row == 7])
    assert np.diff(places).max() < 150  # 1000 pairs, 20 of this video: 50 apart on average


def test_the_same_seed_and_epoch_give_the_same_pairs():
    assert epoch_pairs([3] * 10, 1, 2) == epoch_pairs([3] * 10, 1, 2) != epoch_pairs([3] * 10, 2, 2)


def test_a_batch_that_leaves_a_rank_empty_is_left_out():
    schedule = Schedule([1] * 9, batch_size=4, seed=0, world=2)
    assert [len(batch) for batch in schedule.batches(0)] == [4, 4]  # the ninth pair alone has no negative
    assert schedule.total_steps(3) == 6 and schedule.total_steps(3, max_steps=4) == 4


def test_too_few_videos_for_a_batch_say_so():
    with pytest.raises(ValueError, match="3 training videos give no batch of 8"):
        Schedule([1] * 3, batch_size=8, seed=0, drop_last=True).total_steps(1)
