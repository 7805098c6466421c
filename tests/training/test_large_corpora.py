"""Corpora in shards and several sets in one run: stopped and continued, on one process and on two."""

import json
import subprocess

import pytest
from accelerate import DistributedType

from dmae.data.mixing import mixed
from dmae.data.preparation import Preparation, prepare_dataset
from dmae.data.registry import load_dataset
from dmae.processing.frames_dmae import FrameSampler
from dmae.training.build import (
    build_processor,
    load_splits,
    make_accelerator,
    make_schedule,
    refuse_other_parallelism,
    refuse_sharded,
)
from dmae.training.config import config_from_dict
from dmae.training.loop import train
from dmae.training.state import RunState, data_plan, refuse_other_run


def recipe_of(tiny, miniature, output, **training) -> dict:
    """The webdataset miniature, two tars at a time, and MSVD's miniature with half of its pairs an epoch."""
    words = {"train_batch_size": 5, "save_steps": 2, "save_total_limit": 9, **training}
    recipe = tiny.tiny_recipe(miniature("webdataset").videos, output, **words)
    other = miniature("msvd")
    more = {"name": "msvd", "annotations": str(other.annotations), "videos": str(other.videos), "weight": 0.5}
    recipe["data"] |= {"name": "webdataset", "captions_per_epoch": "all", "mix": [more]}
    return recipe


def test_a_run_reads_two_tars_at_a_time_and_goes_on_with_no_other_number(tiny, miniature, tmp_path):
    recipe = recipe_of(tiny, miniature, tmp_path, max_steps=5)
    recipe["data"] |= {"shards_at_once": 2, "mix": []}
    config = config_from_dict(recipe)
    rows = load_splits(config).train.dataset.to_list()
    schedule = make_schedule(config, rows, 1)
    tars = list(dict.fromkeys(schedule.shards[pair.row] for pair in schedule.pairs(0)))
    windows = [tars.index(schedule.shards[pair.row]) // 2 for pair in schedule.pairs(0)]
    assert len(tars) > 2 and windows == sorted(windows)
    saved = RunState(plan=data_plan(rows, schedule.batch_size), config=config.to_dict())
    refuse_other_run(saved, config, saved.plan, tmp_path)
    recipe["data"]["shards_at_once"] = 1
    with pytest.raises(ValueError, match=r"data\.shards_at_once: 2 -> 1"):
        refuse_other_run(saved, config_from_dict(recipe), saved.plan, tmp_path)


@pytest.mark.slow
def test_a_run_goes_on_inside_a_shard(tiny, miniature, tmp_path):
    recipe = recipe_of(tiny, miniature, tmp_path / "whole", max_steps=5)
    recipe["data"] |= {"shards_at_once": 2, "mix": []}
    whole = train(config_from_dict(recipe))
    recipe["training"] |= {
        "output_dir": str(tmp_path / "again"),
        "resume_from_checkpoint": str(tmp_path / "whole" / "checkpoint-2"),
    }
    assert train(config_from_dict(recipe)).steps == whole.steps == 5
    tiny.assert_same_weights(tmp_path / "whole" / "last", tmp_path / "again" / "last")


def test_several_sets_are_one(miniature):
    msvd, digits = (load_dataset(*miniature(name)) for name in ("msvd", "webdataset"))
    whole = mixed(msvd, [digits, msvd, digits])
    ids = whole.dataset["video_id"][:]
    assert len(set(ids)) == len(ids) == 48 and whole.dataset["set"][:] == [0] * 12 + [1] * 12 + [2] * 12 + [3] * 12
    assert [ids[place].rsplit(":", 1)[0] for place in (12, 24, 36)] == ["webdataset", "msvd-2", "webdataset-2"]
    assert whole.report["dataset"] == "msvd + webdataset + msvd + webdataset"
    assert whole.report["videos"] == 48 and whole.report["captions"] == 4 * 36
    assert len(whole.paragraphs()) == 48


def test_weights_reach_the_schedule_and_their_sets_the_record(tiny, miniature, tmp_path):
    config = config_from_dict(recipe_of(tiny, miniature, tmp_path / "out", max_steps=2))
    splits = load_splits(config)
    schedule = make_schedule(config, splits.train.dataset.to_list(), 1)
    rows = [[pair.row for pair in schedule.pairs(epoch)] for epoch in (0, 1)]
    for epoch in rows:
        assert len(epoch) == 36 + 18 and sorted({row for row in epoch if row < 12}) == list(range(12))
    assert {row for epoch in rows for row in epoch} == set(range(24))
    train(config)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [part["dataset"] for part in record["splits"]["train"]["sets"]] == ["webdataset", "msvd"]


def test_a_set_that_is_also_validated_on_is_refused(tiny, miniature, tmp_path):
    recipe = recipe_of(tiny, miniature, tmp_path)
    recipe["data"]["mix"] = [
        {"name": "webdataset", "videos": str(miniature("webdataset").videos), "split": "validation"}
    ]
    with pytest.raises(ValueError, match=r"4 videos, e\.g\..*are in both training and validation"):
        load_splits(config_from_dict(recipe))
    recipe = tiny.tiny_recipe(miniature("videofolder").videos, tmp_path)
    recipe["data"]["shards_at_once"] = 2
    config = config_from_dict(recipe)
    with pytest.raises(ValueError, match="lies in no tar"):
        make_schedule(config, load_splits(config).train.dataset.to_list(), 1)


def test_the_word_table_of_prepare_is_used(tiny, miniature, tmp_path, caplog):
    videos = miniature("videofolder").videos
    plan = Preparation("videofolder", None, videos, tmp_path / "prepared", decode="none")
    prepare_dataset(plan, FrameSampler(), lambda line: None)
    table = tmp_path / "prepared" / "words" / "word_frequencies.json"
    recipe = tiny.tiny_recipe(videos, tmp_path / "out")
    recipe["processor"]["words"] = str(tmp_path / "prepared")
    config = config_from_dict(recipe)
    splits = load_splits(config)
    counted = build_processor(config_from_dict(tiny.tiny_recipe(videos, tmp_path / "out")), splits).word_weigher
    read = build_processor(config, splits).word_weigher
    assert (read.paragraphs, read.frequency) == (counted.paragraphs, counted.frequency) and not caplog.records
    table.write_text(json.dumps({"paragraphs": 7, "frequency": {"square": 7}}))
    changed = build_processor(config, splits).word_weigher
    assert changed.frequency == {"square": 7} and "counted over 7 videos, training has 12" in caplog.text
    recipe["processor"]["words"] = str(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no word table; `dmae prepare` makes one"):
        build_processor(config_from_dict(recipe), splits)


def test_prepare_packs_what_training_reads(miniature, tmp_path):
    source = miniature("msvd")
    plan = Preparation("msvd", source.annotations, source.videos, tmp_path, decode="none", words=False, shards=True)
    report = prepare_dataset(plan, FrameSampler(), lambda line: None)
    assert report["shards"]["train"] == {"tars": 1, "clips": 12}
    packed = load_dataset("webdataset", videos=tmp_path / "shards", split="test").dataset
    plain = load_dataset(*source, split="test").dataset
    assert packed["video_id"][:] == plain["video_id"][:] and packed["captions"][:] == plain["captions"][:]


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_sharded_parameters_are_refused(kind):
    with pytest.raises(ValueError, match=f"{kind} keeps parameters in pieces"):
        refuse_sharded(DistributedType[kind])
    refuse_sharded(DistributedType.MULTI_GPU)


@pytest.mark.parametrize("name", ["TP", "CP", "SP", "DP_SHARD"])
def test_other_parallelism_is_refused_before_it_starts(name, tiny, miniature, tmp_path, monkeypatch):
    config = tiny.tiny_config(miniature("videofolder").videos, tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}_SIZE", "2")
    with pytest.raises(ValueError, match=f"PARALLELISM_CONFIG_{name}_SIZE=2: only plain data parallelism"):
        make_accelerator(config)
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}_SIZE", "1")
    refuse_other_parallelism()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_by_torchrun_train_as_one(tiny, miniature, tmp_path):
    """The line of the documentation, on shards and several sets: batches of 5 over two processes are never even."""
    outputs = {}
    for processes in (1, 2):
        outputs[processes] = tmp_path / f"by{processes}"
        recipe = recipe_of(tiny, miniature, outputs[processes], max_steps=4)
        recipe["data"]["mix"][0]["name"] = "msvd"
        path = tiny.write_recipe(tmp_path / f"{processes}.yaml", recipe)
        command = [*tiny.torchrun(processes, tiny.free_port()), "-m", "dmae", "train", "--config", str(path)]
        options = {"cwd": tiny.ROOT, "env": tiny.environment(), "capture_output": True, "text": True, "timeout": 1000}
        done = subprocess.run(command, check=False, **options)
        assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((outputs[2] / "run.json").read_text())["world_size"] == 2
    one, two = (tiny.weights(output / "last") for output in outputs.values())
    assert max((one[name] - two[name]).abs().max() for name in one) < 2e-5
