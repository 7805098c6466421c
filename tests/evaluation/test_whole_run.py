"""An evaluation around embeddings that are given: what is asked for, kept, written, recorded and compared, in full."""

import copy
import hashlib
import json
import time
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmae.data.registry import DatasetLocation
from dmae.evaluation import evaluate_model
from dmae.evaluation.evaluate_model import EvaluationOptions, split_and_bank
from dmae.evaluation.results import MATRIX, Results, compare
from dmae.evaluation.scoring import POSTPROCESSING, score_split
from dmae.inference.conditions import code_version, hardware
from dmae.inference.identity import describe_model
from dmae.metrics.text_video_retrieval.bootstrap import bootstrap_intervals
from dmae.metrics.text_video_retrieval.retrieval_metrics import summarize_ranks
from dmae.modeling_dmae.configuration_dmae import DMAEConfig

# ---- a run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def around(split_of, model, processor, miniature, monkeypatch, tmp_path):
    """`evaluate` on the generated MSVD: encoders that give numbers, and everything that is called by the way."""
    asked, location = [], DatasetLocation(*miniature("msvd"))
    made = SimpleNamespace(asked=asked, model=model, processor=processor, location=location, main=True, seed=0)

    def encode(accelerator, folder, network, worker, rows, *words):
        rows = list(rows)
        asked.append(("encode", folder, network, worker, len(rows), *words))
        kept = rows[1:]  # the first did not decode
        skipped = [{"video_id": rows[0]["video_id"], "error": "cut off"}]
        names, counts = [row["video_id"] for row in kept], [len(row["captions"]) for row in kept]
        return split_of(made.seed + (words[-1] == "bank"), counts, names, skipped)

    def accelerator(cpu):
        asked.append(("accelerator", cpu))
        waits = lambda: asked.append(("wait", sorted(path.name for path in tmp_path.iterdir())))  # noqa: E731
        device = torch.device("cpu")
        return SimpleNamespace(is_main_process=made.main, device=device, num_processes=2, wait_for_everyone=waits)

    def load(*words):
        asked.append(("load", *words))
        return model, processor

    monkeypatch.setattr(evaluate_model, "cached_encode_split", encode)
    monkeypatch.setattr(evaluate_model, "Accelerator", accelerator)
    monkeypatch.setattr(evaluate_model, "load_model_and_processor", load)
    for name in ("write_pictures", "write_queries"):
        monkeypatch.setattr(evaluate_model, name, lambda *words, name=name: asked.append((name, *words)))
    clock = SimpleNamespace(monotonic=iter([10.0, 12.34] * 9).__next__, strftime=time.strftime)
    monkeypatch.setattr(evaluate_model, "time", clock)

    def run(name, other=None, **options):
        del asked[:]
        words = {key: options.pop(key) for key in ("cache", "pictures", "per_query") if key in options}
        made.options = EvaluationOptions(num_workers=3, batch_size=5, **{"samples": 20, **options})
        return evaluate_model.evaluate_model("name", location, tmp_path / name, made.options, other=other, **words)

    made.run = run
    return made


def test_a_record_in_full_and_in_the_file(split_of, around, model, processor, tmp_path):
    words = {"ties": "pessimistic", "protocol": "individual"}
    record, nothing = around.run(
        "out", cache=tmp_path / "kept", bank_videos=3, post="qbnorm", confidence=0.5, seed=4, benchmark="org/set:task",
        device="cpu", dtype="bfloat16", **words,
    )  # fmt: skip
    assert nothing is None
    options = around.options
    split, bank_rows = split_and_bank(around.location, options)
    kept = tmp_path / "kept", model, processor
    assert around.asked == [
        ("accelerator", True), ("load", "name", "cpu", "bfloat16"),
        ("encode", *kept, len(split.dataset), 5, 3, "videos"), ("encode", *kept, 3, 5, 3, "bank"), ("wait", ["out"]),
    ]  # fmt: skip
    rows, bank_rows = list(split.dataset)[1:], bank_rows[1:]
    encoded = split_of(0, [len(row["captions"]) for row in rows], [row["video_id"] for row in rows])
    bank = split_of(1, [len(row["captions"]) for row in bank_rows])
    scored = score_split(encoded, model.config, "cpu", *words.values(), "qbnorm", bank)
    captions = [caption for row in rows for caption in row["captions"]]
    draws = {"samples": 20, "confidence": 0.5, "seed": 4}
    ranks = scored.text_ranks, scored.video_ranks
    intervals = bootstrap_intervals(*ranks, encoded.gold, summarize_ranks, **draws)
    first = split.dataset[0]["video_id"]

    def short(lines) -> str:
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]

    lengths = [len(ids) for ids in processor.tokenizer(captions)["input_ids"]]
    assert record == {
        "metrics": summarize_ranks(*ranks), **words, "postprocessing": POSTPROCESSING["qbnorm"],
        "intervals": {name: list(bounds) for name, bounds in intervals.items()}, "bootstrap": draws,
        "model": {**describe_model(model, processor), "name": "name"},
        "data": {
            **split.report, "dataset": "msvd", "split": "test", "videos": len(rows), "captions": len(captions),
            "truncated_captions": sum(length > processor.max_words for length in lengths), "undecodable_videos": 1,
            "undecodable": [{"video_id": first, "error": "cut off"}],
            "gallery": short(encoded.video_ids), "queries": short(captions),
            "benchmark": {"id": "org/set", "task": "task", "metric": "text_to_video_R@1"},
        },
        "frames": model.config.max_frames, "max_words": model.config.max_words, "dtype": "float32", "seed": None,
        "global_batch": None, "training_world_size": None, "world_size": 2,
        "bank": {"split": "train", "videos": 2, "captions": len(bank.gold)}, "options": asdict(options),
        "code": code_version(), "hardware": hardware(torch.device("cpu")), "date": record["date"], "seconds": 2.3,
    }  # fmt: skip
    assert time.strptime(record["date"], "%Y-%m-%d")
    found = Results.read(tmp_path / "out")
    assert found.record == record
    assert set(found.arrays) == {"gold", "text_ranks", "video_ranks", "similarities", "caption_keys", "video_keys"}
    for name, expected in (("gold", encoded.gold), ("text_ranks", ranks[0]), ("video_ranks", ranks[1])):
        np.testing.assert_array_equal(found.arrays[name], expected)
    np.testing.assert_array_equal(found.arrays["similarities"], scored.similarities)
    assert len(set(found.arrays["video_keys"].tolist())) == len(rows)


def test_what_is_asked_for_besides_is_made_of_the_same_numbers(around, model, processor, tmp_path):
    around.seed = 7
    first, _ = around.run("first", post="dsl")
    assert around.asked[0] == ("accelerator", False) and around.asked[1] == ("load", "name", "cpu", "auto")
    assert [word[0] for word in around.asked] == ["accelerator", "load", "encode", "wait"]
    assert first["bank"] is None
    around.seed = 0
    record, comparison = around.run("second", tmp_path / "first", post="dsl", pictures=True, per_query=tmp_path / "q")
    ours, theirs = Results.read(tmp_path / "second"), Results.read(tmp_path / "first")
    assert ours.record == record
    assert comparison == compare(ours, theirs, 20, 0) and comparison["text_to_video_mean_rank"]["interval"]
    assert [word[0] for word in around.asked[3:]] == ["write_queries", "write_pictures", "wait"]
    _, path, encoded, captions, scored, *rest = around.asked[3]
    assert path == tmp_path / "q" and rest == [model.config, "cpu"] and len(captions) == len(encoded.gold)
    assert not np.array_equal(scored.ranked, scored.similarities)
    _, folder, *both, split, again, mine, other = around.asked[4]
    assert (folder, *both, again) == (tmp_path / "second", model, processor, encoded)
    assert split.report["split"] == "test" and mine.record is record
    np.testing.assert_array_equal(other.arrays["text_ranks"], theirs.arrays["text_ranks"])
    _, drawn_again = around.run("seeded", tmp_path / "first", post="dsl", seed=9)
    assert drawn_again == compare(ours, theirs, 20, 9) != comparison
    third, _ = around.run("third", post="dsl", pictures=True, samples=0)
    assert not {"intervals", "bootstrap"} & set(third)
    assert around.asked[3][-1] is None
    (tmp_path / "first" / MATRIX).unlink()
    _, comparison = around.run("fourth", tmp_path / "first", post="dsl", pictures=True)
    assert around.asked[3][-1] is None and "interval" not in comparison["text_to_video_mean_rank"]


def test_the_training_is_what_its_record_says_and_the_dtype_the_model_s(model, tmp_path):
    """The record lies beside a pushed model, or one folder up, beside best/ and last/."""
    record = {"seed": 5, "global_batch": 48, "train_batch_size": 12, "world_size": 3}
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    one = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    half = copy.deepcopy(model).to(torch.bfloat16)
    for folder in ("run", "run/best"):
        said = evaluate_model._conditions(one, half, str(tmp_path / folder), EvaluationOptions(seed=7), None)
        assert (said["seed"], said["global_batch"], said["training_world_size"], said["world_size"]) == (5, 48, 3, 2)
        assert said["dtype"] == "bfloat16" and said["bank"] is None


def test_other_processes_score_nothing_and_wait(around, tmp_path):
    around.main = False
    assert around.run("none") is None
    assert [word[0] for word in around.asked] == ["accelerator", "load", "encode", "wait"]
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_is_refused_before_the_model_is_loaded(around, tmp_path):
    for options, told in (
        ({"benchmark": "one"}, "--benchmark 'one': give the Hub's id"),
        ({"protocol": "x"}, "^protocol 'x' is not a choice; valid: group_max, individual$"),
        ({"ties": "x"}, "^ties 'x' is not a choice; valid: optimistic, average, pessimistic$"),
        ({"post": "x"}, "^post 'x' is not a choice; valid: dsl, qbnorm$"),
        ({"samples": 1}, "^samples=1: an interval needs at least 2 draws"),
        ({"samples": -1}, "^samples=-1: an interval needs"),
        ({"confidence": 1.0}, "^confidence=1.0 must lie between 0 and 1"),
        ({"confidence": 0.0}, "^confidence=0.0 must lie between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=told):
            around.run("none", **options)
        assert around.asked == []
    around.run("first")
    with pytest.raises(ValueError, match="ties: optimistic here, average there"):
        around.run("none", tmp_path / "first", ties="optimistic")
    assert around.asked == []
    with pytest.raises(ValueError, match=r"QB-Norm's bank \(test\) shares 6 videos with the evaluated split, e\.g\. '"):
        around.run("none", post="qbnorm", bank_split="test")
    assert around.asked == []


def test_a_caption_is_cut_when_it_is_longer_than_what_the_model_reads(split_of):
    """As many tokens as it reads are whole. The tokenizer's own warning would be about another limit."""
    asked = []

    def tokenizer(captions, verbose):
        asked.append((captions, verbose))
        return {"input_ids": [[0] * int(caption) for caption in captions]}

    encoded, captions = split_of(0, [2, 1]), ["7", "8", "9"]
    said = evaluate_model._what_was_ranked(encoded, captions, SimpleNamespace(tokenizer=tokenizer, max_words=8))
    assert (said["truncated_captions"], said["undecodable_videos"]) == (1, 0) and asked == [(captions, False)]
    with pytest.raises(ValueError, match="zip"):
        evaluate_model._arrays(encoded, captions[:-1], score_split(encoded, DMAEConfig.tiny()))


def test_the_name_of_one_s_own_data_is_its_folder_s(tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "x"}\n')
    name = evaluate_model._dataset_name
    assert name(DatasetLocation(str(tmp_path / "holiday")), {"dataset": "videofolder"}) == "holiday"
    assert name(DatasetLocation("msvd", str(tmp_path)), {"dataset": "MSVD"}) == "MSVD"
