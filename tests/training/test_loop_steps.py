"""The training loop by itself: what it does at which step, in which order, with which numbers, and what it says."""

import math
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dmae.training import examples, loop
from dmae.training.adapters import save_adapter
from dmae.training.loop import Run
from dmae.training.record import LogWindow
from dmae.training.sampler import Pair
from dmae.training.state import RunState
from dmae.training.watch import Diverged

METRICS = {"text_to_video_R@1": 0.25, "text_to_video_R@10": 0.5, "video_to_text_R@1": 0.125, "video_to_text_R@10": 0.75}


def a_run(**parts):
    """A `Run` with nothing but these parts."""
    run = Run.__new__(Run)
    run.average = None
    for name, part in parts.items():
        setattr(run, name, part)
    return run


# ---------------------------------------------------------------------- a whole run


def test_a_run_is_opened_started_trained_and_closed_in_this_order(tiny, tmp_path, monkeypatch):
    """Trackers are closed at the end; a failure is on record by kind and words, and goes on to the caller."""
    told, config = [], tiny.tiny_config(tmp_path, tmp_path / "out", seed=9)
    accelerator = SimpleNamespace(is_main_process=True, end_training=lambda: told.append("end"))

    class Told:
        def __init__(self, *arguments):
            assert arguments == (config, accelerator) and (tmp_path / "out" / ".lock").exists()
            assert loop.torch.initial_seed() == 9

        def __getattr__(self, name):
            return lambda *arguments, **words: told.append((name, arguments, words)) or answers.get(name)

        def epochs(self, preemption):
            told.append("epochs")
            assert not preemption.requested
            if answers["epochs"] is None:
                raise ZeroDivisionError("by nought")
            return answers["epochs"]

    monkeypatch.setattr(loop, "Run", Told)
    monkeypatch.setattr(loop, "make_accelerator", lambda given: accelerator if given is config else None)
    begun = [("open", (), {}), ("start", (), {}), "epochs"]
    for done, status in ((True, "finished"), (False, "preempted")):
        told.clear()
        answers = {"epochs": done, "finish": "the result"}
        with torch.random.fork_rng():
            assert loop.train(config) == "the result"
        assert told == [*begun, ("finish", (status,), {}), "end"]
    told.clear()
    answers = {"epochs": None}
    with pytest.raises(ZeroDivisionError, match="by nought"), torch.random.fork_rng():
        loop.train(config)
    assert told == [*begun, ("note", (), {"status": "failed", "error": "ZeroDivisionError: by nought"})]


def test_the_end_of_a_run_is_on_record(tmp_path, monkeypatch):
    """Curves once, by one process, of a run that came to its end; seconds that one can read."""
    told = []
    monkeypatch.setattr(loop, "drop_old", lambda *arguments: told.append(("drop", *arguments)))
    monkeypatch.setattr(loop, "read_metrics", lambda path: f"of {path.name}")
    monkeypatch.setattr(loop, "plot_curves", lambda rows, path: told.append(("curves", rows, path.name)))
    for status, main in (("finished", True), ("finished", False), ("preempted", True)):
        told.clear()
        accelerator = SimpleNamespace(is_main_process=main)
        state = RunState(step=7, samples=28, seconds=12.3456, best={"metrics": METRICS}, skipped={"a": 1})
        run = a_run(
            accelerator=accelerator, output=tmp_path, options=SimpleNamespace(save_total_limit=3), state=state,
            log=SimpleNamespace(sync=lambda: told.append("sync")),
            record=SimpleNamespace(update=lambda **facts: told.append(facts)),
        )  # fmt: skip
        result = run.finish(status)
        curves = [("curves", "of metrics.jsonl", "curves.png")] if (status, main) == ("finished", True) else []
        facts = {"status": status, "steps": 7, "samples": 28, "wall_seconds": 12.3}
        facts |= {"best": {"metrics": METRICS}, "skipped_videos": {"a": 1}}
        assert told == [*curves, "sync", ("drop", accelerator, tmp_path, 3), facts]
        assert result == loop.TrainResult(status, tmp_path, 7, 12.3, METRICS)


# ---------------------------------------------------------------------- epochs and steps


@pytest.mark.parametrize(
    ("validated", "steps", "asked_to_stop", "expected", "told"),
    [
        (True, 4, None, True, ["train", "validate", "train", "validate"]),
        (False, 4, None, True, ["validate", "train", "validate", "train", "validate"]),
        (True, 0, None, True, []),
        (False, 0, None, True, ["validate"]),
        (True, 4, 2, False, ["train", "validate", "train"]),
    ],
)
def test_every_epoch_is_validated_once_and_none_is_begun_at_the_end(validated, steps, asked_to_stop, expected, told):
    """A run that was killed between training and validation validates first."""
    found, state = [], RunState(validated=validated)

    def validate():
        found.append("validate")
        state.validated = True

    def train_epoch(preemption):
        found.append("train")
        assert preemption == "preemption"
        if found.count("train") == asked_to_stop:
            return False
        state.step, state.validated = state.step + 2, False
        return True

    run = a_run(state=state, total_steps=steps, _validate=validate, _train_epoch=train_epoch)
    assert run.epochs("preemption") is expected and found == told


@pytest.fixture
def epoch(monkeypatch):
    """epoch(state, total, …) -> (what `_train_epoch` returned, what it did, in order): five batches, two a step."""

    def trained(state, total_steps=9, save_steps=None, logging_steps=2, stops_at=None):
        told: list = []
        batches = [[Pair(4 * number + row, 0, 0) for row in range(4 if number < 4 else 3)] for number in range(5)]

        @contextmanager
        def loaded_ahead(given, wanted, accelerator, workers, seed):
            assert (given.rows, given.processor, workers, seed) == ("rows", "processor", 6, 5)
            yield (("decoded", batch) for batch in wanted)

        @contextmanager
        def progress(steps, title, unit):
            told.append((title, steps, unit))
            yield lambda count: told.append(f"+{count}")

        def train_batch(loaded, window, preemption):
            decoded, batch = loaded
            assert (decoded, preemption) == ("decoded", "preemption")
            window.add({}, len(batch))
            last = batches.index(batch) in (1, 3, 4)
            run.accelerator.sync_gradients = last
            state.step += last
            told.append(f"batch {batches.index(batch)}")
            return last and state.step == stops_at

        def log(window):
            told.append(f"log {state.step}: {window.samples}")
            window.summary()

        monkeypatch.setattr(loop, "loaded_ahead", loaded_ahead)
        monkeypatch.setattr(loop, "progress", progress)
        run = a_run(
            state=state, total_steps=total_steps, rows="rows", processor="processor", _log=log,
            options=SimpleNamespace(num_train_epochs=3, logging_steps=logging_steps, save_steps=save_steps, seed=5),
            config=SimpleNamespace(data=SimpleNamespace(num_workers=6)),
            schedule=SimpleNamespace(batches=lambda number: batches if number == state.epoch else None, accumulation=2),
            accelerator=SimpleNamespace(sync_gradients=False), model=torch.nn.Dropout().eval(),
            _train_batch=train_batch,
            _save_checkpoint=lambda: told.append(f"save {state.step}, {state.epoch}.{state.batch}"),
        )  # fmt: skip
        result = run._train_epoch("preemption")
        assert run.model.training, "after a validation dropout would be off"
        return result, told

    return trained


def test_an_epoch_logs_and_saves_where_the_options_say(epoch):
    """Step 4 is logged and saved on the way; the end of the epoch with what is left, and as the next one's begin."""
    state = RunState(step=2, epoch=1, samples=19)
    assert epoch(state, save_steps=2) == (
        True,
        [
            *[("epoch 2/3", 3, "steps"), "batch 0", "batch 1", "+1", "batch 2", "batch 3", "+1", "log 4: 16"],
            *["save 4, 1.4", "batch 4", "+1", "log 5: 3", "save 5, 2.0"],
        ],
    )
    assert (state.step, state.samples, state.validated) == (5, 38, False)


def test_an_epoch_that_was_logged_to_its_end_has_no_empty_line(epoch):
    state = RunState(step=1, epoch=0, batch=2, samples=8)
    result, told = epoch(state, logging_steps=1)
    assert result is True and told == [
        ("epoch 1/3", 2, "steps"), "batch 2", "batch 3", "+1", "log 2: 8", "batch 4", "+1", "log 3: 3", "save 3, 1.0",
    ]  # fmt: skip
    assert (state.samples, state.validated) == (19, False)


def test_the_last_step_ends_the_run_within_its_epoch(epoch):
    state = RunState(step=3)
    assert epoch(state, total_steps=4, save_steps=1) == (
        True,
        [("epoch 1/3", 1, "steps"), "batch 0", "batch 1", "+1", "log 4: 8", "save 4, 0.2"],
    )
    assert not state.validated


def test_a_run_that_is_asked_to_stop_saves_that_step_and_no_more(epoch):
    state = RunState(step=2)
    result, told = epoch(state, stops_at=3)
    assert result is False and told == [("epoch 1/3", 3, "steps"), "batch 0", "batch 1", "+1", "save 3, 0.2"]
    assert state.validated and state.batch == 2


@pytest.mark.parametrize("skipped", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_a_step_is_settled_before_the_weights_change_and_counted_after(monkeypatch, last, skipped):
    """A step that the loss scaler left out is no step of the schedule; a batch that ends no step changes nothing."""
    told, weights = [], [torch.nn.Parameter(torch.ones(2))]
    say = lambda word, answer=None: lambda *given: told.append((word, *given)) or answer  # noqa: E731
    accelerator = SimpleNamespace(
        accumulate=lambda module: said_around(told, ("accumulate", module)), num_processes=2, sync_gradients=last,
        clip_grad_norm_=say("clip", torch.tensor(0.5)), optimizer_step_was_skipped=skipped,
    )  # fmt: skip
    objective = SimpleNamespace(parameters=lambda: weights)
    run = a_run(
        accelerator=accelerator, state=RunState(step=6), total_steps=20, objective=objective,
        options=SimpleNamespace(max_grad_norm=0.25), _backward=lambda batch: {"loss": torch.tensor(2.0)},
        watch=SimpleNamespace(add=say("watch"), agree=say("agree", True)),
        optimizer=SimpleNamespace(step=say("step"), zero_grad=say("zero")), scheduler=SimpleNamespace(step=say("rate")),
        model=SimpleNamespace(clamp_logit_scale=say("clamp")), bare_objective=SimpleNamespace(progress=None),
        average=SimpleNamespace(update_parameters=say("mean")),
    )  # fmt: skip
    batch, window = {"names": ["a", "b", "c"]}, SimpleNamespace(add=say("window"))
    assert run._train_batch(batch, window, SimpleNamespace(requested="asked")) is last
    terms = {"loss": 2.0, "gradient_norm": 0.5} if last else {"loss": 2.0}
    before = [("clip", weights, 0.25), ("agree", 7, torch.tensor(0.5), "asked")] if last else []
    after = [] if skipped else [("rate",)]
    after += [("clamp",), ("mean", run.model)]
    assert told == [
        ("accumulate", objective), ("watch", batch, torch.tensor(2.0)), *before, ("step",), ("zero",), "done",
        *(after if last else []), ("window", terms, 6),
    ]  # fmt: skip
    assert (run.state.step, run.bare_objective.progress) == ((7, 0.35) if last else (6, None))


@contextmanager
def said_around(told, what):
    told.append(what)
    yield
    told.append("done")


def test_a_batch_that_the_model_refuses_is_told_by_its_videos():
    def objective(**inputs):
        raise ValueError("row 1 of 2 holds NaN")

    frames = torch.zeros(2, 1, 3, 2, 2, dtype=torch.uint8)
    batch = {"frames": frames, "video_mask": torch.ones(2, 1, dtype=torch.bool), "names": ["a", "b"], "skipped": []}
    sampler = SimpleNamespace(normalize=lambda frames: frames.float())
    run = a_run(
        options=SimpleNamespace(gradient_cache_chunk=None), state=RunState(step=3), objective=objective,
        processor=SimpleNamespace(feature_extractor=sampler),
    )  # fmt: skip
    with pytest.raises(Diverged) as error:
        run._backward(batch)
    assert str(error.value) == "step 4: row 1 of 2 holds NaN. Videos of this process's batch: a, b"


@pytest.mark.parametrize("chunk", [None, 3])
def test_gradients_are_taken_whole_or_in_chunks(monkeypatch, chunk):
    """Accelerate scales the loss under fp16, so that backward is always its own."""
    told, terms = [], {"loss": "the loss"}
    monkeypatch.setattr(loop, "cached_backward", lambda *arguments: told.append(arguments) or terms)
    monkeypatch.setattr(loop, "to_model_inputs", lambda batch, sampler: {"given": (batch, sampler)})
    run = a_run(
        options=SimpleNamespace(gradient_cache_chunk=chunk), objective=lambda **inputs: told.append(inputs) or terms,
        processor=SimpleNamespace(feature_extractor="sampler"), accelerator=SimpleNamespace(backward=told.append),
    )  # fmt: skip
    assert run._backward("batch") is terms
    inputs = {"given": ("batch", "sampler")}
    assert told == ([(run.accelerator, run.objective, inputs, 3)] if chunk else [inputs, "the loss"])


# ---------------------------------------------------------------------- batches ahead of their step


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_rank_loads_its_part_of_every_batch(monkeypatch, device):
    """Its seed is its own: from the global generator, the model of a run that goes on would draw other numbers."""
    made = []

    def loader(*arguments, **words):
        made.append((arguments, words))
        return SimpleNamespace(end=lambda: made.append("end"))

    monkeypatch.setattr(examples, "DataLoaderShard", loader)
    accelerator = SimpleNamespace(num_processes=2, process_index=1, device=torch.device(device))
    pairs = [Pair(row, 0, 0) for row in range(7)]
    some = examples.TrainingExamples([], None)
    with pytest.raises(ZeroDivisionError), examples.loaded_ahead(some, [pairs[:4], pairs[4:]], accelerator, 3, 8):
        1 / 0  # noqa: B018
    ((arguments, words), ended) = made
    assert arguments == (some,) and ended == "end", "workers would wait for a step that never comes"
    generator = words.pop("generator")
    assert generator.initial_seed() == 8 and words == {
        "device": torch.device(device),
        "batch_sampler": [pairs[2:4], pairs[5:]],
        "collate_fn": some.collate,
        "num_workers": 3,
        "pin_memory": device == "cuda",
    }


# ---------------------------------------------------------------------- validation


def test_the_judged_model_is_validated_and_then_saved_as_the_last(monkeypatch, tiny, tmp_path):
    told = []
    config = tiny.tiny_config(tmp_path, tmp_path, per_device_eval_batch_size=3)
    monkeypatch.setattr(loop, "validate", lambda *arguments: told.append(arguments) or "result")
    rows = SimpleNamespace(to_list=lambda: "rows")
    for validation in (SimpleNamespace(dataset=rows), None):
        told.clear()
        run = a_run(
            config=config, options=config.training, accelerator="accelerator", model="model", processor="processor",
            average=SimpleNamespace(module="mean"), splits=SimpleNamespace(validation=validation),
            state=RunState(validated=False, samples=7, best={"value": 1}), schedule=SimpleNamespace(pairs_per_epoch=3),
            _save_model=lambda name: f"hash of {name}", _select=told.append, _tick=lambda: told.append("tick"),
            record=SimpleNamespace(update=lambda **facts: told.append(facts)), note=lambda: told.append("note"),
        )  # fmt: skip
        run._validate()
        scored = [("accelerator", "mean", "processor", "rows", 3, 0), "result"] if validation else []
        last = {"best": {"value": 1}, "last": {"epoch": 2.333, "weights": "hash of last"}}
        assert told == [*scored, last, "tick", "note"] and run.state.validated is True


@pytest.mark.parametrize(("value", "better"), [(0.4, True), (0.3, False), (0.2, False), (None, True)])
def test_a_model_is_the_best_only_if_it_is_better(value, better):
    """Of two that are equal the first stays: what was published would change for nothing."""
    told, metrics = [], {**METRICS, "rsum": value or 0.0}
    best = {} if value is None else {"value": 0.3, "weights": "of the first", "metrics": {"rsum": 0.3}}
    run = a_run(
        options=SimpleNamespace(metric_for_best_model="rsum"), total_steps=90,
        schedule=SimpleNamespace(pairs_per_epoch=8),
        state=RunState(step=30, seconds=600.0, samples=12, best=dict(best)), _save_model=lambda name: f"hash of {name}",
        log=SimpleNamespace(write=lambda *given, **words: told.append((given, words))),
        accelerator=SimpleNamespace(print=told.append),
    )  # fmt: skip
    skipped = [{"video_id": "c", "path": "p", "error": "bad"}] if better else []
    run._select({"metrics": dict(metrics), "videos": 4, "texts": 12, "skipped": skipped})
    logged = {"epoch": 1.5, "videos": 4, "texts": 12, "skipped": ["c"] if better else [], **metrics}
    more = ", 1 more could not be decoded" if better else ""
    recalls = "text→video R@1 25.0% R@10 50.0%, video→text R@1 12.5% R@10 75.0%"
    line = f"epoch 1.5, step 30/90: {recalls} (12 texts, 4 videos{more}); about 20.0 min left"
    assert told == [((30,), logged), line]
    place = {"epoch": 1.5, "step": 30, "metric": "rsum", "value": metrics["rsum"], "weights": "hash of best"}
    assert run.state.best == ({**place, "metrics": metrics, "videos": 4, "texts": 12} if better else best)


@pytest.mark.parametrize(
    ("lora", "base", "adapter"),
    [
        *[(None, {"from_clip": "clip"}, None), ("lora", {}, None), ("lora", {"from_clip": "clip"}, "clip")],
        *[("lora", {"from_pretrained": "folder"}, "folder"), (None, {}, None)],
    ],
)
def test_a_model_with_adapters_is_saved_merged_and_beside_its_base(monkeypatch, lora, base, adapter):
    saved = []
    monkeypatch.setattr(loop, "without_adapters", lambda model: f"merged {model}")
    monkeypatch.setattr(loop, "save_model", lambda *arguments: saved.append(arguments))
    monkeypatch.setattr(loop, "weights_hash", lambda model: f"hash of {model}")
    run = a_run(
        accelerator="accelerator", output=Path("out"), saved_processor="as built", processor="with stored frames",
        model="model", options=SimpleNamespace(lora=lora), config=SimpleNamespace(model=base),
    )  # fmt: skip
    model = "merged model" if lora else "model"
    assert run._save_model("best") == f"hash of {model}"
    ((*given, way),) = saved
    assert given == ["accelerator", model, "as built", Path("out/best")]
    assert (way and (way.func, way.args, way.keywords)) == (adapter and (save_adapter, ("model", adapter), {}))
    assert adapter is None or isinstance(way, partial)


# ---------------------------------------------------------------------- clock and log


def test_a_checkpoint_has_the_time_and_the_log_up_to_its_step(monkeypatch, tmp_path):
    told, now = [], [100.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(loop, "save_checkpoint", lambda *arguments: told.append(arguments))
    run = a_run(
        accelerator="accelerator", output=tmp_path, options=SimpleNamespace(save_total_limit=3), clock=97.5,
        state=RunState(step=7, seconds=10.0), log=SimpleNamespace(sync=lambda: told.append("sync")),
    )  # fmt: skip
    run._save_checkpoint()
    now[0] += 1.5
    run._tick()
    ((accelerator, output, state, keep),) = told[1:]
    assert told[0] == "sync" and (accelerator, output, keep) == ("accelerator", tmp_path, 3)
    assert (state["seconds"], state["step"], run.state.seconds) == (12.5, 7, 14.0)


def test_a_log_line_has_the_step_the_epoch_the_means_and_the_rates():
    told, window = [], LogWindow()
    window.add({"loss": torch.tensor(3.0)}, 4)
    run = a_run(
        state=RunState(step=7, samples=28), schedule=SimpleNamespace(pairs_per_epoch=9),
        log=SimpleNamespace(write=lambda *given, **words: told.append((given, words))),
        optimizer=SimpleNamespace(param_groups=[{"name": "learning_rate", "lr": 0.5}]),
    )  # fmt: skip
    run._log(window)
    ((given, words),) = told
    assert given == (7,) and {name: words[name] for name in ("epoch", "loss", "learning_rate")} == {
        "epoch": 3.111, "loss": 3.0, "learning_rate": 0.5,
    }  # fmt: skip
    assert math.isfinite(words["samples_per_second"]) and window.samples == 0
