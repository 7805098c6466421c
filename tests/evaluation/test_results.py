"""Results and lines of queries: brought into one order, compared in full, refused where they do not belong together."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dmae.evaluation import queries
from dmae.evaluation.results import MATRIX, Results, compare, compare_results
from dmae.evaluation.scoring import score_split
from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_ranks, summarize_ranks
from dmae.modeling_dmae.configuration_dmae import DMAEConfig

# ---- results and queries ----------------------------------------------------------------------------------------


def results(seed: int) -> Results:
    """Ranks of 12 captions of 5 videos, one caption given twice."""
    scores, gold = np.random.default_rng(seed).standard_normal((12, 5)), np.arange(12) % 5
    keys = np.array([100, 101, 102, 103, 104, 100, 106, 107, 108, 109, 110, 111])
    text, video = retrieval_ranks(scores, gold)
    arrays = {"gold": gold, "text_ranks": text, "video_ranks": video, "caption_keys": keys}
    arrays |= {"video_keys": np.arange(5) + 50, "similarities": scores}
    facts = {"dataset": "own", "split": "test", "gallery": "a", "queries": "b"}
    record = {"ties": "average", "protocol": "group_max", "postprocessing": None, "data": facts}
    return Results({**record, "metrics": summarize_ranks(text, video)}, arrays)


def test_rows_and_columns_are_brought_into_the_other_s_order():
    ours, turned = results(0), results(0)
    rows, columns = np.array([3, 0, 7, 5, 2, 1, 4, 6, 11, 10, 9, 8]), np.array([2, 4, 0, 1, 3])
    for name in ("text_ranks", "caption_keys"):
        turned.arrays[name] = ours.arrays[name][rows]
    for name in ("video_ranks", "video_keys"):
        turned.arrays[name] = ours.arrays[name][columns]
    turned.arrays["gold"] = np.argsort(columns)[ours.arrays["gold"][rows]]
    turned.arrays["similarities"] = ours.arrays["similarities"][np.ix_(rows, columns)]
    found = turned.in_order_of(ours)
    assert found.record is turned.record and set(found.arrays) == set(ours.arrays)
    for name, expected in ours.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], expected, name)
    other = results(1)
    assert compare(other, turned, 30) == compare(other, ours, 30), "pairs are the same caption, wherever its row is"
    del turned.arrays["similarities"]
    assert "similarities" not in turned.in_order_of(ours).arrays
    turned.arrays["video_keys"] = turned.arrays["video_keys"] + 1
    del ours.arrays["video_ranks"]
    with pytest.raises(ValueError, match="beside one of the results does not say which captions it holds"):
        turned.in_order_of(ours)
    ours.arrays["video_ranks"] = turned.arrays["video_ranks"]
    with pytest.raises(ValueError, match=r"they rank other videos\. Evaluate both on the same data"):
        turned.in_order_of(ours)


def test_damaged_similarities_are_named(tmp_path):
    results(0).write(tmp_path, [f"v{number}" for number in range(5)])
    (tmp_path / MATRIX).write_bytes((tmp_path / MATRIX).read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"similarities.safetensors: damaged \(.+\); evaluate again"):
        Results.read(tmp_path)


def test_a_comparison_in_full():
    first, second = results(0), results(1)
    pairs = compare(first, second, 30, 2)
    found = compare_results(first, second, 30, 2)
    assert list(found) == list(first.record["metrics"])
    for name, entry in found.items():
        ours, theirs = first.record["metrics"][name], second.record["metrics"][name]
        low, high = pairs[name]["interval"]
        assert entry == {"first": ours, "second": theirs, "difference": ours - theirs, "low": low, "high": high}
        assert pairs[name] == {"other": theirs, "difference": ours - theirs, "interval": [low, high]}
    assert all(set(entry) == {"other", "difference"} for entry in compare(first, second, samples=0).values())
    del second.record["metrics"]["video_to_text_rsum"]
    assert "video_to_text_rsum" not in compare(first, second, 30) and len(compare(first, second, 30)) == 11
    other = replace(second, record={**second.record, "ties": "optimistic"})
    with pytest.raises(ValueError, match="ties: average here, optimistic there"):
        compare(first, other, 30)
    bare = replace(second, arrays={})
    assert "interval" not in compare(first, bare)["text_to_video_R@1"]
    for pair in ((first, bare), (bare, first)):
        with pytest.raises(ValueError, match="an interval needs the ranks"):
            compare_results(*pair)


@pytest.mark.parametrize("tile", [1, 4, 512])
def test_lines_of_queries_are_the_same_from_a_matrix_and_from_tiles(split_of, tile, monkeypatch, tmp_path):
    """Equal scores stand in the order of the videos; a score has six decimals."""
    monkeypatch.setattr(queries, "TEXT_TILE", tile)
    config, split = DMAEConfig.tiny(), split_of(0, [1] * 11 + [2])
    split.videos = split.videos[torch.arange(12) // 2]
    captions = [f"é {number}" for number in range(13)]
    scored = score_split(split, config)
    queries.write_queries(tmp_path / "a" / "b" / "whole.jsonl", split, captions, scored, config)
    bare = replace(scored, similarities=None, ranked=None)
    queries.write_queries(tmp_path / "a" / "b" / "tiles.jsonl", split, captions, bare, config)
    text = (tmp_path / "a" / "b" / "whole.jsonl").read_text(encoding="utf-8")
    assert text == (tmp_path / "a" / "b" / "tiles.jsonl").read_text(encoding="utf-8") and text.endswith("}\n")
    assert "é 0" in text and len(text.splitlines()) == 13
    found = queries.Queries.read(tmp_path / "a" / "b" / "whole.jsonl")
    assert found.keys == [(f"v{row}", caption, 0) for row, caption in zip(split.gold, captions)]
    np.testing.assert_array_equal(found.ranks, scored.text_ranks)
    for row, line in enumerate(text.splitlines()):
        order = np.argsort(-scored.similarities[row], kind="stable")[:10]
        top = [{"video_id": f"v{n}", "score": round(float(scored.similarities[row, n]), 6)} for n in order]
        assert queries.json.loads(line)["top"] == top


def test_two_files_of_queries_are_compared_and_refused_by_their_captions(tmp_path):
    keys = [("v1", "a", 0), ("v0", "b", 0), ("v1", "d", 0), ("v2", "b", 0)]
    first = queries.Queries(tmp_path / "x", keys, np.array([1.0, 4, 2, 12]))
    second = queries.Queries(tmp_path / "y", keys[::-1], np.array([3.0, 6, 4, 1]))
    found = queries.compare_queries(first, second, 50, 3)
    ones = np.ones(3)
    ours, theirs = summarize_ranks(first.ranks, ones), summarize_ranks(second.ranks[::-1], ones)
    gold = np.array([1, 0, 1, 2])
    pair = (first.ranks, ones), (second.ranks[::-1], ones)
    intervals = queries.paired_difference(*pair, gold, summarize_ranks, 50, seed=3)
    assert found == {
        name: {
            "first": ours[name], "second": theirs[name], "difference": ours[name] - theirs[name],
            "low": intervals[name][0], "high": intervals[name][1],
        }
        for name in ours if name.startswith("text_to_video")
    }  # fmt: skip
    assert queries.moved(first, second) == [
        {"caption": "b", "video_id": "v2", "first": 12.0, "second": 3.0},
        {"caption": "d", "video_id": "v1", "first": 2.0, "second": 6.0},
    ]
    more = queries.Queries(tmp_path / "z", [*keys, ("v9", "e", 0)], np.ones(5))
    with pytest.raises(ValueError, match=r"z and .*x cannot be compared: 1 and 0 of .* 'e' of 'v9'\. Evaluate both"):
        more.in_order_of(first)


@pytest.mark.parametrize("rank, fine", [(1, True), (0.5, False), (0, False)])
def test_a_rank_is_counted_from_one(tmp_path, rank, fine):
    (tmp_path / "q").write_text(f'\n{{"caption": "a", "video_id": "v", "rank": {rank}}}\n \n')
    if fine:
        assert queries.Queries.read(tmp_path / "q").ranks.tolist() == [1.0]
    else:
        with pytest.raises(ValueError, match=f"q, line 2: no line of .*rank {float(rank)}"):
            queries.Queries.read(tmp_path / "q")
