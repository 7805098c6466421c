"""How a run comes to be: what is looked at before anything is written, its parts, and what it says as it begins."""

from types import SimpleNamespace

import pytest
import torch

from dmae.training import loop
from dmae.training.loop import Run
from dmae.training.state import RunState, data_plan


def a_run(**parts):
    """A `Run` with nothing but these parts."""
    run = Run.__new__(Run)
    vars(run).update(parts)
    return run


def a_split(name: str, ids: str, missing: str = ""):
    rows = [{"video_id": video, "captions": ["a"], "start": None, "end": None} for video in ids]
    return SimpleNamespace(
        dataset=SimpleNamespace(to_list=lambda: [*rows]),
        missing=[{"video_id": video, "reason": "gone"} for video in missing],
        report={"split": name, "listed_videos": len(ids + missing)},
    )


@pytest.fixture
def config(tiny, tmp_path):
    return tiny.tiny_config(tmp_path, tmp_path / "out", train_batch_size=2, resume_from_checkpoint="last", ema=0.5)


# ---- what is refused before anything is written -------------------------------------------------------------------


@pytest.fixture
def made(config, monkeypatch, tmp_path):
    """made(splits, found) -> (the run, what it did in order): without its model."""

    def make(splits, found=None, saved=None):
        told = []
        monkeypatch.setattr(loop, "check_output", lambda *given: told.append(("output", *given)))
        monkeypatch.setattr(loop, "load_splits", lambda given: splits if given is config else None)
        monkeypatch.setattr(loop, "find_checkpoint", lambda *given: told.append(("find", *given)) or found)
        monkeypatch.setattr(loop, "read_state", lambda path: {**vars(saved)} if path is found else None)
        monkeypatch.setattr(loop, "refuse_other_run", lambda *given: told.append(("same", *given)))
        monkeypatch.setattr(Run, "_build", lambda self: told.append("build"))
        return Run(config, SimpleNamespace(num_processes=1)), told

    return make


def test_a_run_looks_at_the_folder_and_its_data_and_then_builds(made, config, tmp_path):
    splits = SimpleNamespace(train=a_split("train", "abcde"), validation=None)
    run, told = made(splits)
    out = tmp_path / "out"
    assert told == [("output", run.accelerator, out, config.training), ("find", "last", out), "build"]
    assert run.rows == splits.train.dataset.to_list() and run.average is None and run.resumed_from is None
    plan = data_plan(run.rows, 2)
    assert run.state == RunState(plan=plan, config=config.to_dict()) and plan["global_batch_size"] == 2
    assert (run.schedule.batch_size, run.schedule.world, run.total_steps) == (2, 1, 2 * 2), "two epochs of two steps"
    again, folder = RunState(step=3, samples=6, plan={"of": "then"}, config={"of": "then"}), out / "checkpoint-3"
    run, told = made(splits, folder, again)
    assert told[2:] == [("same", again, config, plan, folder), "build"] and run.resumed_from is folder
    assert run.state == RunState(step=3, samples=6, plan={"of": "then"}, config=config.to_dict())


@pytest.mark.parametrize("lost", ["train", "validation"])
def test_a_split_that_has_lost_too_many_videos_is_not_begun(made, lost):
    parts = {name: a_split(name, "abcde", "xyz" if name == lost else "") for name in ("train", "validation")}
    with pytest.raises(ValueError, match=f"^3 of 8 {lost} videos are lost: 3 missing"):
        made(SimpleNamespace(**parts))


# ---- model, optimiser and schedule --------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [None, 0.75])
@pytest.mark.parametrize("resumed", [None, "a checkpoint"])
def test_the_parts_of_a_run(config, monkeypatch, make_model, ema, resumed):
    """Frozen before the optimiser is made, loaded after all is registered; judged is the mean, if there is one."""
    told, model = [], make_model()
    options = config.training.model_copy(update={"ema": ema, "freeze": ["vision_model"]})
    config = config.model_copy(update={"training": options})

    def make_optimizer(given, words, device):
        told.append((given, words, device, given.vision_model.embeddings.patch_embedding.weight.requires_grad))
        return "optimizer"

    say = lambda word: lambda *given: told.append((word, *given)) or word  # noqa: E731
    monkeypatch.setattr(loop, "make_optimizer", make_optimizer)
    for name in ("build_processor", "make_scheduler", "load_checkpoint"):
        monkeypatch.setattr(loop, name, say(name))
    monkeypatch.setattr(loop, "build_model", lambda *given: told.append(("build_model", *given)) or model)
    accelerator = SimpleNamespace(
        device="cpu", prepare=lambda *given: told.append(("prepare", *given)) or ("ready", "ready optimizer"),
        register_for_checkpointing=say("register"),
    )  # fmt: skip
    run = a_run(
        config=config, options=options, splits="splits", accelerator=accelerator, average=None, total_steps=8,
        state=RunState(step=2), resumed_from=resumed,
    )  # fmt: skip
    run._build()
    kept = ["make_scheduler", *([run.average] if ema else [])]
    assert told == [
        ("build_processor", config, "splits"), ("build_model", config, "build_processor"),
        (model, options, "cpu", False), ("make_scheduler", "optimizer", options, 8),
        ("prepare", run.bare_objective, "optimizer"), ("register", *kept),
        *([("load_checkpoint", accelerator, resumed)] if resumed else []),
    ]  # fmt: skip
    assert (run.objective, run.optimizer, run.scheduler) == ("ready", "ready optimizer", "make_scheduler")
    assert run.processor == run.saved_processor == "build_processor" and run.bare_objective.model is model
    assert run.bare_objective.progress == (0.25 if resumed else 0.0)
    assert run.judged is (run.average.module if ema else model) and (run.judged is model) == (ema is None)
    if ema:  # the mean begins as the weights that it is first told of, and then follows at the recipe's rate
        for value in (1.0, 3.0):
            torch.nn.init.constant_(model.logit_scale, value)
            run.average.update_parameters(model)
        assert run.judged.logit_scale.item() == pytest.approx(0.75 * 1 + 0.25 * 3)


# ---- on disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resumed", [None, "a checkpoint"])
def test_an_opened_run_tells_what_is_missing_and_where_it_goes_on(monkeypatch, tmp_path, resumed):
    told = []
    say = lambda word: lambda *given, **words: told.append((word, *given, words)) or word  # noqa: E731
    for name in ("open_output", "RunRecord", "MetricsLog"):
        monkeypatch.setattr(loop, name, say(name))
    monkeypatch.setattr(loop, "run_facts", lambda run: "facts")
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 7.5))
    accelerator = SimpleNamespace(is_main_process="main", print=say("print"))
    splits = SimpleNamespace(train=a_split("train", "ab", "xy"), validation=a_split("validation", "cd"))
    run = a_run(
        accelerator=accelerator, output=tmp_path, options="options", splits=splits, total_steps=9, note=say("note"),
        state=RunState(step=4, validated=False), resumed_from=resumed,
    )  # fmt: skip
    run.open()
    on = [
        ("note", {"resumed_from": resumed, "resumed_at_step": 4}),
        ("print", f"going on from {resumed}, step 4 of 9", {}),
    ]
    lost = "warning: 2 of 4 train videos are lost: 2 missing (first: x: gone); run.json names them all"
    assert told == [
        ("open_output", accelerator, tmp_path, "options", {}), ("print", lost, {}),
        ("RunRecord", tmp_path / "run.json", "main", "facts", {}), *(on if resumed else []),
        ("MetricsLog", tmp_path / "metrics.jsonl", accelerator, 4, False, {}),
    ]  # fmt: skip
    assert (run.clock, run.record, run.log) == (7.5, "RunRecord", "MetricsLog")


@pytest.mark.parametrize("validation", [None, a_split("validation", "cd")])
@pytest.mark.parametrize("trackers", [[], ["tensorboard"]])
def test_a_started_run_reads_all_its_frames_and_counts_the_broken_of_training(
    config, monkeypatch, tmp_path, validation, trackers
):
    """A loader draws from the global generator, from which the model of a run that goes on is to draw next."""
    told, asked = [], []

    def with_stored_frames(processor, where, rows, workers):
        torch.rand(3)
        asked.append((processor, where, [row["video_id"] for row in rows], workers))
        return "with frames", [{"video_id": name, "path": name, "error": "bad"} for name in "bd"]

    monkeypatch.setattr(loop, "with_stored_frames", with_stored_frames)
    accelerator = SimpleNamespace(init_trackers=told.append, is_main_process=True, device="cpu")
    train = a_split("train", "ab", "x")
    data = config.data.model_copy(update={"cache_frames": "memory", "num_workers": 3, "max_skipped_share": 0.7})
    run = a_run(
        config=SimpleNamespace(data=data), options=SimpleNamespace(report_to=trackers), accelerator=accelerator,
        splits=SimpleNamespace(train=train, validation=validation), rows=train.dataset.to_list(), output=tmp_path,
        state=RunState(skipped={}), processor="processor",
    )  # fmt: skip
    before = torch.get_rng_state()
    run.start()
    assert torch.equal(torch.get_rng_state(), before) and told == (["dmae"] if trackers else [])
    assert asked == [("processor", "memory", ["a", "b", *("cd" if validation else "")], 3)]
    assert run.processor == "with frames" and len(run.rows) == 2, "else it would train on the validation split"
    broken = {"b": {"path": "b", "error": "bad"}}
    assert run.state.skipped == run.watch.skipped == broken and run.watch.accelerator is accelerator
    assert (run.watch.limit.listed, run.watch.limit.share, len(run.watch.limit.missing)) == (3, 0.7, 1)
    assert (tmp_path / "skipped_videos.json").is_file()


def test_a_note_has_how_far_the_run_is():
    told = []
    state = RunState(step=7, samples=28, seconds=12.3456, best={"value": 1}, skipped={"a": 1})
    a_run(state=state, record=SimpleNamespace(update=lambda **facts: told.append(facts))).note(status="failed")
    totals = {"steps": 7, "samples": 28, "wall_seconds": 12.3}
    assert told == [{"status": "failed", **totals, "best": {"value": 1}, "skipped_videos": {"a": 1}}]
