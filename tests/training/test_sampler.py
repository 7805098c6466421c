"""Every caption once per epoch, no video twice in a batch, nothing lost between ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmae.training.sampler import Schedule, epoch_pairs, global_batches, rank_share, weighted_rows

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
    for first in range(0, 1000, 50):  # once in every twentieth of the epoch, in an order and with captions of its own
        assert sorted(pair.row for pair in pairs[first : first + 50]) == list(range(50))
    for drawn in (lambda pair: pair.caption, lambda pair: pair.draw):
        assert len({tuple(drawn(pair) for pair in pairs if pair.row == row) for row in range(50)}) == 50


def test_the_same_seed_and_epoch_give_the_same_pairs():
    assert epoch_pairs([3] * 10, 1, 2) == epoch_pairs([3] * 10, 1, 2) != epoch_pairs([3] * 10, 2, 2)


def test_a_batch_that_leaves_a_rank_empty_is_left_out():
    schedule = Schedule([1] * 9, batch_size=4, seed=0, world=2)
    assert [len(batch) for batch in schedule.batches(0)] == [4, 4]  # the ninth pair alone has no negative
    assert schedule.total_steps(3) == 6 and schedule.total_steps(3, max_steps=4) == 4


def test_too_few_videos_for_a_batch_say_so():
    with pytest.raises(ValueError, match="3 training videos give no batch of 8"):
        Schedule([1] * 3, batch_size=8, seed=0, drop_last=True).total_steps(1)


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(1, 4), st.integers(1, 6), st.sampled_from(["all", "one"]))
def test_windows_hold_every_pair_once_and_few_shards_at_a_time(counts, at_once, shard_size, captions):
    shards = [row // shard_size for row in range(len(counts))]
    schedule = Schedule(counts, 2, 0, captions, shards=shards, shards_at_once=at_once)
    whole = Schedule(counts, 2, 0, captions)
    pairs, open_shards, met = schedule.pairs(1), [], []
    if captions == "all":
        assert sorted((pair.row, pair.caption) for pair in pairs) == sorted((p.row, p.caption) for p in whole.pairs(1))
    else:
        assert sorted(pair.row for pair in pairs) == list(range(len(counts)))
    for pair in pairs:  # a shard that was left is not come back to
        if shards[pair.row] not in met:
            met.append(shards[pair.row])
        open_shards.append(met.index(shards[pair.row]) // at_once)
    assert open_shards == sorted(open_shards)
    assert schedule.pairs(1) == pairs


def test_windows_come_in_another_order_each_epoch():
    schedule = Schedule([1] * 40, 4, 0, shards=[row // 4 for row in range(40)], shards_at_once=2)
    first, second = ([pair.row // 4 for pair in schedule.pairs(epoch)][::8] for epoch in (0, 1))
    assert first != second


@pytest.mark.parametrize("weight", [0.25, 1.0, 2.5, 1 / 3])
def test_a_weight_is_how_often_a_row_comes(weight):
    weights = [1.0] * 10 + [weight] * 12
    epochs = [weighted_rows(weights, seed=5, epoch=epoch) for epoch in range(12)]
    for rows in epochs:
        counts = np.bincount(rows, minlength=22)
        assert set(counts[:10]) == {1} and abs(counts[10:].sum() - 12 * weight) <= 1
        assert set(counts[10:]) <= {int(weight), int(weight) + 1}
    total = np.bincount(np.concatenate(epochs), minlength=22)
    assert set(total[10:]) == {round(12 * weight)}


def test_weighted_pairs_fill_batches_without_a_video_twice():
    schedule = Schedule([2, 1, 3, 1, 2, 2], 3, 0, weights=[1, 1, 1, 3, 0.5, 2])
    for epoch in range(4):
        batches = schedule.batches(epoch)
        assert all(len({pair.row for pair in batch}) == len(batch) for batch in batches)
        rows = weighted_rows(schedule.weights, 0, epoch)
        assert len(schedule.pairs(epoch)) == sum(schedule.caption_counts[row] for row in rows)
    assert len({tuple(sorted(pair.row for pair in schedule.pairs(epoch))) for epoch in range(2)}) == 2
