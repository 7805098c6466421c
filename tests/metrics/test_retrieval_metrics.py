"""Ranks against a naive oracle that counts pair by pair, and the properties any ranking metric must have."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dmae import retrieval_metrics
from dmae.metrics.text_video_retrieval.retrieval_metrics import (
    PROTOCOLS,
    TIES,
    _tile,
    retrieval_ranks,
    streaming_ranks,
    summarize_ranks,
)

SHARE = {"optimistic": 0.0, "average": 0.5, "pessimistic": 1.0}


def oracle_rank(right, others, ties):
    return 1 + sum(1.0 if score > right else SHARE[ties] if score == right else 0.0 for score in others)


def oracle(similarities, gold, ties, protocol):
    rows = [[float(score) for score in row] for row in similarities]
    text_ranks = [
        oracle_rank(row[own], [score for video, score in enumerate(row) if video != own], ties)
        for row, own in zip(rows, gold)
    ]
    video_ranks = []
    for video in sorted(set(gold)):
        captions = {other: [row[video] for row, own in zip(rows, gold) if own == other] for other in set(gold)}
        right = max(captions.pop(video))
        if protocol == "group_max":
            others = [max(scores) for scores in captions.values()]
        else:
            others = [score for scores in captions.values() for score in scores]
        video_ranks.append(oracle_rank(right, others, ties))
    return np.array(text_ranks), np.array(video_ranks)


@st.composite
def problems(draw):
    """Small matrices of few distinct values, so that ties abound; gold in any order, with distractor videos."""
    texts, videos = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64, np.int64]))
    values = hnp.arrays(dtype, (texts, videos), elements=st.integers(-2, 2))
    gold = draw(hnp.arrays(np.int64, texts, elements=st.integers(0, videos - 1)))
    return draw(values), gold


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from(sorted(TIES)), st.sampled_from(PROTOCOLS), st.integers(4, 300))
def test_ranks_equal_the_oracle_whole_and_in_tiles(problem, ties, protocol, tile_bytes):
    similarities, gold = problem
    text_ranks, video_ranks = oracle(similarities, gold.tolist(), ties, protocol)
    streamed = streaming_ranks(
        lambda rows, columns: similarities[rows, columns], gold, similarities.shape[1], ties, protocol, tile_bytes
    )
    for ours in (retrieval_ranks(similarities, gold, ties, protocol), streamed):
        np.testing.assert_array_equal(ours[0], text_ranks)
        np.testing.assert_array_equal(ours[1], video_ranks)


@pytest.mark.parametrize("ties", TIES)
def test_strips_of_the_counter_do_not_show(ties):
    """Wider and longer than one strip, and no multiple of eight, with ties and infinities."""
    random = np.random.default_rng(0)
    similarities = random.integers(-3, 4, (300, 2100)).astype(np.float32)
    similarities[random.random(similarities.shape) < 0.01] = -np.inf
    gold = random.integers(0, 2100, 300)
    right = similarities[np.arange(300), gold][:, None]
    higher, equal = (similarities > right).sum(1), (similarities == right).sum(1) - 1
    np.testing.assert_array_equal(retrieval_ranks(similarities, gold, ties)[0], 1 + higher + SHARE[ties] * equal)


def test_a_collapsed_model_scores_at_chance():
    metrics = retrieval_metrics(np.zeros((100, 100)), np.arange(100))
    for direction in ("text_to_video", "video_to_text"):
        assert metrics[f"{direction}_R@1"] == metrics[f"{direction}_R@10"] == 0
        assert metrics[f"{direction}_mean_rank"] == metrics[f"{direction}_median_rank"] == 50.5


def test_keys_ranges_and_a_worked_example():
    metrics = retrieval_metrics(np.array([[0.9, 0.1, 0.3], [0.8, 0.3, 0.2], [0.1, 0.2, 0.7]]), np.arange(3))
    names = ["R@1", "R@5", "R@10", "median_rank", "mean_rank", "rsum"]
    assert list(metrics) == [f"{way}_{name}" for way in ("text_to_video", "video_to_text") for name in names]
    assert metrics["text_to_video_R@1"] == pytest.approx(2 / 3)
    assert metrics["text_to_video_mean_rank"] == pytest.approx(4 / 3)
    assert metrics["text_to_video_rsum"] == pytest.approx(2 / 3 + 2)
    assert metrics["video_to_text_R@1"] == 1
    assert all(type(value) is float for value in metrics.values())


@settings(max_examples=50, deadline=None)
@given(problems(), st.randoms())
def test_the_order_of_texts_and_videos_does_not_matter(problem, random):
    similarities, gold = problem
    texts, videos = (random.sample(range(size), size) for size in similarities.shape)
    shuffled = similarities[np.ix_(texts, videos)]
    assert retrieval_metrics(shuffled, np.argsort(videos)[gold[texts]]) == pytest.approx(
        retrieval_metrics(similarities, gold)
    )


@settings(max_examples=50, deadline=None)
@given(problems())
def test_a_monotone_change_of_scores_changes_nothing(problem):
    similarities, gold = problem
    assert retrieval_metrics(np.exp(similarities.astype(float)), gold) == retrieval_metrics(similarities, gold)


def test_one_caption_per_video_makes_the_protocols_equal_and_the_directions_transposes():
    similarities = np.random.default_rng(1).standard_normal((40, 40))
    grouped, individual = (retrieval_metrics(similarities, np.arange(40), protocol=name) for name in PROTOCOLS)
    assert grouped == individual
    transposed = retrieval_metrics(similarities.T, np.arange(40))
    assert grouped["video_to_text_mean_rank"] == transposed["text_to_video_mean_rank"]


def test_right_pairs_never_tie_with_themselves_when_tiles_round_differently():
    """A scorer whose second call differs in the last bit (another kernel, a GPU) must not push a right item down."""
    exact = np.eye(6, dtype=np.float32)
    calls = []

    def score(rows, columns):
        calls.append(1)
        return exact[rows, columns] * np.float32(1 + 1e-6 * len(calls))

    text_ranks, video_ranks = streaming_ranks(score, np.arange(6), 6)
    assert (text_ranks == 1).all() and (video_ranks == 1).all()


@pytest.mark.parametrize(
    ("similarities", "gold", "options", "message"),
    [
        ([[0.1, np.nan]], [0], {}, "NaN"),
        ([[np.nan, 0.1]], [0], {}, "NaN"),
        ([[0.1, 0.2]], [2], {}, r"0\.\.1"),
        ([[0.1, 0.2]], [-1], {}, r"0\.\.1"),
        ([[0.1, 0.2]], [0, 1], {}, "one video index per text"),
        ([[0.1, 0.2]], [0.0], {}, "integers"),
        ([0.1, 0.2], [0], {}, r"\(texts, videos\)"),
        (np.zeros((0, 3)), [], {}, "nothing to rank|integers"),
        ([[1j, 0]], [0], {}, "real numbers"),
        ([[0.1, 0.2]], [0], {"ties": "first"}, "average"),
        ([[0.1, 0.2]], [0], {"protocol": "group"}, "group_max"),
    ],
)
def test_bad_input_is_refused_with_its_value(similarities, gold, options, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(np.asarray(similarities), np.asarray(gold), **options)


def test_the_input_is_left_as_it_was():
    similarities = np.random.default_rng(2).standard_normal((20, 20)).astype(np.float32)
    before = similarities.copy()
    retrieval_metrics(similarities, np.arange(20) // 2)
    np.testing.assert_array_equal(similarities, before)


def test_summary_of_known_ranks():
    metrics = summarize_ranks(np.array([1.0, 2, 6, 11]), np.array([1.0, 1.5]))
    assert [metrics[f"text_to_video_{name}"] for name in ("R@1", "R@5", "R@10", "rsum")] == [0.25, 0.5, 0.75, 1.5]
    assert metrics["text_to_video_median_rank"] == 4 and metrics["text_to_video_mean_rank"] == 5
    assert metrics["video_to_text_R@1"] == 0.5


@pytest.mark.parametrize("texts, tile_bytes, side", [(25, 400, 10), (20, 400, 10), (3, 1, 1)])
def test_a_tile_is_as_large_as_is_said_and_no_larger(texts, tile_bytes, side):
    """A side of the root of as many float32s; the memory of a split that has no room for its matrix hangs on it."""
    scores, gold = np.random.default_rng(0).standard_normal((texts, 28)), np.arange(texts)
    asked = []

    def score(rows, columns):
        asked.append((tuple(rows.tolist()), (columns.start, columns.stop)))
        return scores[rows, columns]

    found = streaming_ranks(score, gold, 28, tile_bytes=tile_bytes)
    for mine, whole in zip(found, retrieval_ranks(scores, gold)):
        np.testing.assert_array_equal(mine, whole)
    assert {at for _, at in asked} == {(n, min(n + side, 28)) for n in range(0, 28, side)}
    assert {rows for rows, _ in asked} == {tuple(range(n, min(n + side, texts))) for n in range(0, texts, side)}


def test_blocks_end_where_a_video_s_captions_do():
    """Ten rows at a time; eleven captions of one video are one block all the same."""
    gold = np.repeat([0, 1, 2, 3, 5], [4, 6, 5, 11, 2])
    seen = []

    def score(rows, columns):
        seen.append(len(rows))
        return np.zeros((len(rows), columns.stop - columns.start))

    streaming_ranks(score, gold, 6, tile_bytes=400)
    assert seen[: len(seen) // 2] == [10, 5, 11, 2]


def test_many_texts_in_order_rank_as_they_do_in_any_order():
    """More rows than one tile holds: those in order are read as a view of the matrix."""
    random = np.random.default_rng(0)
    similarities, gold = random.integers(0, 50, (2500, 40)).astype(np.float32), np.sort(random.integers(0, 40, 2500))
    shuffled = random.permutation(2500)
    text_ranks, video_ranks = retrieval_ranks(similarities, gold)
    other = retrieval_ranks(similarities[shuffled], gold[shuffled])
    np.testing.assert_array_equal(text_ranks[shuffled], other[0])
    np.testing.assert_array_equal(video_ranks, other[1])
    own = similarities[np.arange(2500), gold][:, None]
    higher, equal = (similarities > own).sum(1), (similarities == own).sum(1) - 1
    np.testing.assert_array_equal(text_ranks, 1 + higher + 0.5 * equal)


def test_yes_and_no_are_numbers_too():
    similarities = np.array([[True, False], [True, False], [False, False]])
    for protocol in PROTOCOLS:
        as_numbers = retrieval_ranks(similarities.astype(float), [0, 1, 1], protocol=protocol)
        for mine, theirs in zip(retrieval_ranks(similarities, [0, 1, 1], protocol=protocol), as_numbers):
            np.testing.assert_array_equal(mine, theirs)


def test_what_is_not_a_number_is_named_by_its_place():
    similarities = np.zeros((4, 3))
    similarities[2, 1] = np.nan
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match=r"^similarities hold NaN \(texts 0\.\.3, videos 0\.\.2\); a NaN has no rank"),
    ):
        warnings.simplefilter("error")  # refused before anything is computed with it
        retrieval_ranks(similarities, [0, 0, 1, 2])
    with pytest.raises(ValueError, match=r"^gold must lie in 0\.\.2, got 0\.\.3$"):
        retrieval_ranks(np.zeros((2, 3)), [0, 3])
    with pytest.raises(ValueError, match=r"^nothing to rank: 0 texts and 3 videos$"):
        retrieval_ranks(np.zeros((0, 3)), np.zeros(0, int))
    with pytest.raises(ValueError, match=r"^nothing to rank: 2 texts and 0 videos$"):
        retrieval_ranks(np.zeros((2, 0)), np.zeros(2, int))


@pytest.mark.parametrize(
    ("held", "kept"),
    [
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("int64", "float64"),
        ("uint8", "float64"),
    ],
)
def test_no_two_scores_become_one_by_their_type(held, kept):
    """Whole numbers beyond 2^24 are apart in float64 alone."""
    tile = _tile(lambda rows, cols: np.ones((1, 2), held), np.arange(1), slice(0, 2))
    assert tile.dtype == kept and tile.shape == (1, 2)
