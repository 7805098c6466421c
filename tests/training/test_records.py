"""What a run writes down as it goes, and what several runs add up to, word for word and number for number."""

import json
import re
from types import SimpleNamespace

import pytest
import torch

from dmae import files
from dmae.training import record, seeds
from dmae.training.record import MetricsLog, RunRecord, run_facts
from dmae.training.sampler import Pair, Schedule, global_batches
from dmae.training.tokenizer import train_bpe_tokenizer
from dmae.training.watch import SkipLimit, StepWatch


@pytest.fixture
def at_noon(monkeypatch):
    monkeypatch.setattr(record, "_now", lambda: "noon")


def test_the_record_is_rewritten_at_each_update_by_one_process(tmp_path, at_noon):
    for writes in (True, False):
        path = tmp_path / f"{writes}.json"
        made = RunRecord(path, writes, {"seed": 3, "where": tmp_path})
        expected = {"status": "running", "started": "noon", "seed": 3, "where": str(tmp_path), "updated": "noon"}
        assert path.is_file() is writes and (not writes or json.loads(path.read_text()) == expected)
        made.update(status="finished", name="é")
        assert made.facts["status"] == "finished"
        if writes:
            text = json.dumps(expected | {"status": "finished", "name": "é"}, indent=2, ensure_ascii=False)
            assert json.loads(path.read_text()) == json.loads(text) and "é" in path.read_text()
            assert path.read_text().startswith('{\n  "status"') and path.read_text().endswith("}\n")


def test_a_log_line_is_on_disk_and_its_numbers_with_the_trackers(tmp_path, at_noon, monkeypatch):
    told, seen, path = [], [], tmp_path / "metrics.jsonl"
    accelerator = SimpleNamespace(is_main_process=True, log=lambda values, step: told.append((step, values)))
    log = MetricsLog(path, accelerator)
    assert path.read_text() == ""
    monkeypatch.setattr(files, "fault", lambda point, where: seen.append((point, where)))
    log.write(3, loss=0.5, skipped=["a"], videos=4)
    assert seen == [("write", path)] and told == [(3, {"loss": 0.5, "videos": 4})]
    log.write(4, loss=0.25)
    expected = [{"step": 3, "loss": 0.5, "skipped": ["a"], "videos": 4}, {"step": 4, "loss": 0.25}]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [row | {"time": "noon"} for row in expected]
    seen.clear()
    log.sync()
    assert seen == [("fsync", path), ("fsync", tmp_path)]
    MetricsLog(path, accelerator, step=4, validated=True)
    assert len(path.read_text().splitlines()) == 2, "a run that goes on keeps what it has told"
    MetricsLog(path, accelerator, step=0)
    assert path.read_text() == "", "one that begins anew does not"
    seen.clear()
    path.unlink()
    log.sync()
    other = MetricsLog(tmp_path / "none", SimpleNamespace(is_main_process=False, log=accelerator.log))
    other.write(5, loss=1.0)
    other.sync()
    path.touch()
    MetricsLog.sync(SimpleNamespace(path=path, accelerator=other.accelerator))
    assert seen == [], "the first process's file is no other's to wait for"
    assert not (tmp_path / "none").exists() and told[-1] == (5, {"loss": 1.0})


def test_the_time_is_written_with_its_zone():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", record._now())


def test_facts_are_those_of_the_run(monkeypatch):
    monkeypatch.setattr(record, "code_version", lambda: "code")
    monkeypatch.setattr(record, "hardware", lambda device: f"on {device}")
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    model.config = SimpleNamespace(to_dict=lambda: "model", max_frames=4, max_words=16)
    for precision, said in (("no", "fp32"), ("bf16", "bf16")):
        facts = run_facts(
            SimpleNamespace(
                model=model, config=SimpleNamespace(to_dict=lambda: "config"), total_steps=9,
                splits=SimpleNamespace(train=SimpleNamespace(report="all"), validation=None),
                options=SimpleNamespace(seed=5), schedule=SimpleNamespace(batch_size=8),
                accelerator=SimpleNamespace(mixed_precision=precision, num_processes=2, device="cpu"),
            )
        )  # fmt: skip
        expected = {"config": "config", "model": "model", "parameters": 8, "trained_parameters": 6}
        expected |= {"splits": {"train": "all"}, "frames": 4, "words": 16, "ties": "average", "post_processing": None}
        expected |= {"seed": 5, "world_size": 2, "global_batch": 8, "dtype": said, "total_steps": 9}
        assert facts == expected | {"code": "code", "hardware": "on cpu"}


def test_what_a_step_has_skipped_is_told_and_written_once(tmp_path):
    accelerator = SimpleNamespace(device=torch.device("cpu"), mixed_precision="no", is_main_process=True)
    missing = [{"video_id": "m", "reason": "gone"}, {"video_id": "n", "reason": "away"}]
    watch = StepWatch(accelerator, {}, SkipLimit("train", 10, missing, 0.3), tmp_path / "skipped.json")
    item = {"video_id": "a", "path": "p", "error": "bad"}
    watch.add({"names": ["x"], "skipped": [item]}, torch.tensor(1.0))
    assert watch.agree(1, torch.tensor(1.0), False) is False
    assert (watch.names, watch.new, bool(watch.wrong)) == ([], [], False)
    text = (tmp_path / "skipped.json").read_text()
    assert text == json.dumps({"a": {"path": "p", "error": "bad"}}, indent=2) + "\n"
    (tmp_path / "skipped.json").unlink()
    watch.add({"names": ["x"], "skipped": []}, torch.tensor(1.0))
    assert watch.agree(2, torch.tensor(1.0), False) is False and not (tmp_path / "skipped.json").exists()
    watch.add({"names": ["x"], "skipped": [{**item, "video_id": "b"}]}, None)
    lost = "4 of 10 train videos are lost: 2 missing (first: m: gone), 2 that cannot be decoded (first: a: bad)"
    with pytest.raises(ValueError, match=f"^{re.escape(lost)}; data.max_skipped_share=0.3 allows 3: restore them"):
        watch.agree(3, torch.tensor(1.0), False)


# ---------------------------------------------------------------------- schedule and tokenizer


def test_steps_are_counted_over_the_epochs_and_end_at_the_most():
    schedule = Schedule([1] * 10, batch_size=4, seed=0, accumulation=2)  # 4, 4 and 2 pairs: two steps an epoch
    assert [schedule.total_steps(epochs) for epochs in (1, 3)] == [2, 6]
    assert [schedule.total_steps(3, most) for most in (-1, 0, 1, 5, 6, 9)] == [6, 6, 1, 5, 6, 6]
    assert (schedule.pairs_per_epoch, Schedule([2, 3], 2, 0).pairs_per_epoch) == (10, 5)
    assert Schedule([2, 3], 2, 0, captions="one").pairs_per_epoch == 2
    assert Schedule([2, 3], 2, 0, weights=[2.0, 1.0]).pairs_per_epoch == 7
    assert [len(batch) for batch in Schedule([1] * 6, 4, 0).batches(0)] == [4, 2], "two pairs have a negative each"
    assert [len(batch) for batch in Schedule([1] * 5, 4, 0).batches(0)] == [4], "one has none"
    pairs = [Pair(row, 0, 0) for row in range(6)]
    assert [len(batch) for batch in global_batches(pairs, 4, drop_last=True)] == [4]
    assert all(isinstance(pair.draw, int) and 0 <= pair.draw < 2**31 for pair in schedule.pairs(0))


def test_the_smallest_vocabulary_is_the_bytes_and_digits_stand_alone(capfd):
    texts = ["1995 cats, 1995 dogs, 1995 birds"] * 9
    with pytest.raises(ValueError, match=r"^vocab_size=258: must be at least 259, the bytes and three special tokens$"):
        train_bpe_tokenizer(texts, 258)
    assert len(train_bpe_tokenizer(texts, 259)) == 259
    tokenizer = train_bpe_tokenizer(texts, 400)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("1995 cats")["input_ids"])
    assert [piece.removeprefix("Ġ") for piece in pieces[1:5]] == ["1", "9", "9", "5"] and pieces[5] == "Ġcats"
    assert capfd.readouterr() == ("", ""), "no bar between the lines of a run"


# ---------------------------------------------------------------------- several seeds


@pytest.fixture
def several(tiny, tmp_path, monkeypatch):
    """several(splits, …) -> (the summary, what was trained): three runs whose R@1 is a tenth of their seed."""

    def trained(splits, main=True, validation="validation"):
        told = []

        def train(config):
            words = config.training
            told.append((words.seed, words.output_dir, words.resume_from_checkpoint))
            folder = tmp_path / "out" / f"seed-{words.seed}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "run.json").write_text(json.dumps({"last": {"weights": f"hash {words.seed}"}}))
            return SimpleNamespace(status="finished", model_dir=folder / "last", metrics={"R@1": words.seed / 10})

        monkeypatch.setattr(seeds, "train", train)
        monkeypatch.setattr(seeds, "available_splits", lambda *location: splits)
        monkeypatch.setattr(seeds, "is_main_process", lambda: main)
        monkeypatch.setattr(seeds, "table", lambda summary: f"{len(summary['seeds'])} é runs\n")

        def evaluate_model(model, *rest):
            told.append((model, *rest))
            return [{"metrics": {"R@1": int(model[-6]) / 5}}]  # …/seed-2/last

        monkeypatch.setattr(seeds, "evaluate_model", evaluate_model)
        recipe = tiny.tiny_recipe(tmp_path, tmp_path / "out", seed=2)
        recipe["data"]["validation_split"] = validation
        recipe["variant"] = "größer"
        return seeds.train_seeds(seeds.RunConfig.model_validate(recipe), 3), told

    return trained


def test_seeds_are_summed_up_on_the_split_that_there_is(several, tmp_path, capsys):
    out = tmp_path / "out"
    runs = [(seed, str(out / f"seed-{seed}"), "last") for seed in (2, 3, 4)]
    summary, told = several(["train", "validation"])
    assert told == runs and summary["metrics"]["R@1"]["values"] == [0.2, 0.3, 0.4]
    assert (summary["split"], summary["seeds"], summary["confidence"]) == ("validation", [2, 3, 4], 0.95)
    assert summary["models"] == {2: "hash 2", 3: "hash 3", 4: "hash 4"}
    assert json.loads((out / "seeds.json").read_text()) == json.loads(json.dumps(summary))
    assert (out / "seeds.json").read_text() == json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    assert (out / "seeds.md").read_text() == "3 é runs\n"
    assert capsys.readouterr().out == f"3 é runs\n\n{out / 'seeds.json'} has every run\n"
    summary, told = several(["train", "test"], validation=None)
    assert summary["split"] == "test" and summary["metrics"]["R@1"]["values"] == [0.4, 0.6, 0.8]
    assert [given[0] for given in told[1::2]] == [str(out / f"seed-{seed}" / "last") for seed in (2, 3, 4)]
    assert [given[2] for given in told[1::2]] == [out / f"seed-{seed}" / "test" for seed in (2, 3, 4)]
    assert told[1][3].split == "test" and told[1][3].samples == 0
    with pytest.raises(
        ValueError, match=r"has no test split here, and data\.validation_split is null: nothing to score$"
    ):
        several(["train"], validation=None)
    capsys.readouterr()
    assert several(["validation"], main=False)[0] is None and capsys.readouterr().out == ""
