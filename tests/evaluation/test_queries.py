"""A line per caption, and two such files compared by caption."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from dmae.cli import app
from dmae.evaluation.queries import Queries, compare_queries, moved, write_queries
from dmae.evaluation.scoring import Scored
from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_ranks

CAPTIONS = 60
VIDEOS = 20


@pytest.fixture
def files(tmp_path):
    """Two models' files: the second is the first with noise; and its lines shuffled, as a third."""
    random = np.random.default_rng(0)
    gold = np.repeat(np.arange(VIDEOS), CAPTIONS // VIDEOS)
    scores = random.standard_normal((CAPTIONS, VIDEOS)).astype(np.float32)
    scores[np.arange(CAPTIONS), gold] += 1.5
    split = SimpleNamespace(texts=None, videos=None, gold=gold, video_ids=[f"v{n}" for n in range(VIDEOS)])
    captions = [f"caption {n % 7} [bold] of\u2028{n // 3}" for n in range(CAPTIONS)]  # some come twice
    noisy = scores + random.standard_normal(scores.shape).astype(np.float32)
    for name, matrix in (("a", scores), ("b", noisy)):
        ranks = retrieval_ranks(matrix, gold)
        write_queries(tmp_path / f"{name}.jsonl", split, captions, Scored(*ranks, matrix, matrix), None)
    lines = (tmp_path / "b.jsonl").read_text().strip("\n").split("\n")
    (tmp_path / "shuffled.jsonl").write_text("\n".join(lines[::-1]) + "\n")
    return tmp_path, scores, gold


def test_a_line_has_rank_and_the_top_ten_in_order(files):
    folder, scores, gold = files
    lines = [json.loads(line) for line in (folder / "a.jsonl").read_text().strip("\n").split("\n")]
    assert len(lines) == CAPTIONS
    for row, line in enumerate(lines):
        assert line["video_id"] == f"v{gold[row]}"
        assert line["rank"] == 1 + np.count_nonzero(scores[row] > scores[row, gold[row]])
        assert [hit["video_id"] for hit in line["top"]] == [f"v{n}" for n in np.argsort(-scores[row])[:10]]
        assert (line["rank"] <= 10) == (line["video_id"] in [hit["video_id"] for hit in line["top"]])
        assert line["top"][0]["score"] == pytest.approx(scores[row].max(), abs=1e-5)


def test_pairs_are_captions_not_lines(files):
    folder, *_ = files
    a, b, shuffled = (Queries.read(folder / f"{name}.jsonl") for name in ("a", "b", "shuffled"))
    zero = compare_queries(b, b)
    assert all(entry["difference"] == entry["low"] == entry["high"] == 0 for entry in zero.values())
    plain, other = compare_queries(a, b), compare_queries(a, shuffled)
    assert plain["text_to_video_rsum"] == other["text_to_video_rsum"]
    assert plain["text_to_video_R@1"]["low"] < plain["text_to_video_R@1"]["difference"]
    assert {row["caption"] for row in moved(a, b)} == {row["caption"] for row in moved(a, shuffled)}
    assert moved(b, b) == []


def test_the_interval_of_a_clear_difference_leaves_zero_out(files):
    folder, *_ = files
    a, b = (Queries.read(folder / f"{name}.jsonl") for name in ("a", "b"))
    entry, back = compare_queries(a, b)["text_to_video_rsum"], compare_queries(b, a)["text_to_video_rsum"]
    assert 0 < entry["low"] < entry["difference"] < entry["high"]
    assert (back["difference"], back["low"], back["high"]) == (-entry["difference"], -entry["high"], -entry["low"])


def test_the_command_prints_json_and_a_table(files):
    folder, *_ = files
    names = [str(folder / "a.jsonl"), str(folder / "b.jsonl")]
    said = json.loads(CliRunner().invoke(app, ["compare", *names, "--json"], catch_exceptions=False).stdout)
    assert said["low"] < said["difference"] < said["high"] and said["metric"] == "text_to_video_rsum"
    assert len(said["moved"]) == 10 and said["metrics"]["text_to_video_rsum"]["difference"] == said["difference"]
    shown = CliRunner().invoke(app, ["compare", *names, "--top-k", "1"], catch_exceptions=False).stdout
    assert "queries moved" in shown and "[bold]" in shown and "\\u2028" in shown
    wrong = CliRunner().invoke(app, ["compare", *names, "--metric", "x"])
    assert wrong.exit_code == 1


def test_other_queries_and_other_files_are_refused_in_words(files):
    folder, *_ = files
    lines = (folder / "a.jsonl").read_text().strip("\n").split("\n")
    (folder / "fewer.jsonl").write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(ValueError, match=r"1 and 0 of their queries are in one only, e\.g\. 'caption 0"):
        compare_queries(Queries.read(folder / "fewer.jsonl"), Queries.read(folder / "a.jsonl"))
    for text in ("{}", "[1]", "no json", '{"caption": "a", "video_id": 3, "rank": 1}', "[" * 100_000, ""):
        (folder / "wrong.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"wrong\.jsonl"):
            Queries.read(folder / "wrong.jsonl")
