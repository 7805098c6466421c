"""Every stage of `dmae demo` by itself: what it hands on, what it says, what it refuses."""

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmae import VideoIndex, demo
from dmae.evaluation.near_misses import first_caption_scores, near_miss_accuracy, read_rows
from dmae.inference.identity import describe_model
from dmae.inference.loading import load_model_and_processor
from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_metrics

COLOURS = ["red", "green", "blue", "grey", "white", "black"]


@pytest.fixture(scope="module")
def split(clips, tmp_path_factory):
    """Six clips of groups of their own and, third of all, a near miss of the first."""
    folder = tmp_path_factory.mktemp("corpus") / "test"
    folder.mkdir()
    names = [f"{number}_base" for number in range(6)]
    names.insert(2, "0_colour")
    near, rows = {"0_base": [{"video_id": "0_colour", "attribute": "colour"}]}, []
    for number, name in enumerate(names):
        (folder / f"{name}.mp4").write_bytes((clips / f"clip{number:02d}.mp4").read_bytes())
        captions = [f"a {COLOURS[number % 6]} square, {number}", f"a clip that moves {number}"]
        rows.append({"file_name": f"{name}.mp4", "video_id": name, "captions": captions})
        rows[-1]["near_misses"] = near.get(name, [])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_stages_run_in_order_each_on_what_the_ones_before_made(monkeypatch, tmp_path, capsys):
    asked, clock = [], SimpleNamespace(now=100.0)
    monkeypatch.setattr(demo, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def stage(name, result, seconds):
        def run(*arguments):
            asked.append((name, *arguments))
            clock.now += seconds
            return result

        monkeypatch.setattr(name if "." in name else f"dmae.demo.{name}", run)

    corpus, model = tmp_path / "the corpus", tmp_path.resolve() / "sub" / "out" / "model"
    stage("_render", corpus, 0.5)
    stage("_train", model, 61.2)
    stage("_evaluate", {"the": "metrics"}, 1.25)
    stage("_reload", None, 0.4)
    stage("_search", ["answers"], 2.0)
    stage("read_rows", ["rows"], 0.0)
    stage("dmae.visuals.demo_report.write_report", None, 0.0)
    stage("_print_tables", None, 0.0)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the folder may be there
        asked.clear()
        assert demo.run_demo("sub/out", "tiny", ("a.b=1",)) == {"the": "metrics"}
    output = tmp_path.resolve() / "sub" / "out"
    assert output.is_dir() and asked == [
        ("_render", output / "corpus", "tiny"),
        ("_train", output, corpus, ("a.b=1",)),
        ("_evaluate", corpus / "test", model, output),
        ("_reload", model, corpus / "test"),
        ("_search", output / "index", model, corpus / "test"),
        ("read_rows", output / "corpus" / "test"),
        ("dmae.visuals.demo_report.write_report", output, {"the": "metrics"}, ["answers"], ["rows"]),
        ("_print_tables", {"the": "metrics"}),
    ]
    said = [
        "[demo] writing the report",
        "Done (videos 0 s, training 61 s, evaluation 1 s, index and search 2 s).",
        "Look at sub/out/report.html; the model is in sub/out/model. Try:",
        '  dmae search sub/out/index "a red seven slides to the left"',
    ]
    assert capsys.readouterr().out.splitlines() == 2 * said
    monkeypatch.chdir(output / "..")
    assert [demo._shown(path) for path in (output / "a", tmp_path / "b")] == ["out/a", str(tmp_path / "b")]


def test_what_a_stage_says_is_seen_at_once(monkeypatch):
    """The training below prints by itself: what waits in a buffer would come after it."""
    seen = []
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.setattr(sys.stdout, "flush", lambda: seen.append(sys.stdout.getvalue()))
    demo._say("training")
    assert seen == ["[demo] training\n"]


def test_the_videos_are_those_of_the_preset(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("dmae.data.moving_digits.corpus.render_moving_digits", lambda *arguments: arguments)
    assert demo._render(tmp_path, "tiny") == (tmp_path, "tiny")
    assert capsys.readouterr().out == f"[demo] videos: MovingDigits (tiny) in {tmp_path}\n"


@pytest.mark.parametrize("batch, fewer", [(4, True), (3, False), (2, False), (None, False)])
def test_training_is_the_command_with_the_demos_recipe(monkeypatch, tmp_path, capsys, batch, fewer):
    corpus, output = tmp_path / "corpus", tmp_path / "out"
    (corpus / "train").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "c.mp4", "metadata.jsonl"):
        (corpus / "train" / name).touch()
    recipe = SimpleNamespace(training=SimpleNamespace(train_batch_size=batch))
    monkeypatch.setattr("dmae.training.config.load_config", lambda path: recipe if path.is_file() else None)
    commands = []
    monkeypatch.setattr(demo, "_call", commands.append)
    with pytest.raises(ValueError, match=f"before it had a model; .* go on from {output / 'run'}"):
        demo._train(output, corpus, ())
    assert not (output / "model").exists()
    (output / "run" / "best").mkdir(parents=True)
    (output / "run" / "best" / "config.json").write_text("{}")
    assert demo._train(output, corpus, ("a.b=1",)) == output / "model"
    assert (output / "model" / "config.json").read_text() == "{}"
    command = commands[-1]
    assert command[:4] == [sys.executable, "-m", "dmae", "train"] and command[4] == "--config"
    assert Path(command[5]).name == "moving_digits.yaml" and Path(command[5]).is_file()
    words = [f"data.videos={corpus}", f"training.output_dir={output / 'run'}"]
    words += ["training.train_batch_size=3"] * fewer + ["a.b=1"]
    resuming = ["--resume-from-checkpoint", "last"]
    assert command[6:] == resuming + [part for word in words for part in ("--set", word)]
    begun = "[demo] training from random weights (dmae train); Ctrl-C and `dmae demo` again goes on\n"
    assert capsys.readouterr().out == 2 * begun
    assert demo._train(output, corpus, ()) == output / "model" and len(commands) == 2
    assert capsys.readouterr().out == f"[demo] training: {output / 'model'} is there\n"


@pytest.mark.parametrize("cores, threads", [(None, "1"), (1, "1"), (2, "1"), (4, "2"), (7, "3")])
def test_no_saved_configuration_changes_the_training(monkeypatch, cores, threads):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    plain = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert demo._environment() == {**os.environ, **plain}
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    alone = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": threads}
    assert demo._environment() == {**os.environ, **plain, **alone}


def test_the_training_is_waited_for_also_after_ctrl_c(monkeypatch):
    ends, started = [], []

    class Process:
        def __init__(self, command, env):
            started.append((command, env == demo._environment()))

        def wait(self):
            end = ends.pop(0)
            if isinstance(end, int):
                return end
            raise end

    monkeypatch.setattr("subprocess.Popen", Process)
    ends += [0]
    demo._call(["dmae", "train"])
    assert started == [(["dmae", "train"], True)] and not ends
    ends += [3]
    with pytest.raises(ValueError, match="training failed with exit code 3; its message is above"):
        demo._call(["dmae", "train"])
    ends += [KeyboardInterrupt(), 130]
    with pytest.raises(KeyboardInterrupt):
        demo._call(["dmae", "train"])
    assert not ends, "the training was left running"


def test_metrics_are_of_the_trained_model_of_its_twin_before_and_of_chance(
    model_folder, split, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(demo, "_metrics", lambda scores: {"scores": scores.tolist()})
    model, processor = load_model_and_processor(model_folder)
    rows = read_rows(split)
    torch.rand(3)  # whatever was drawn before, the untrained twin is always the same
    found = demo._evaluate(split, model_folder, tmp_path)
    assert (tmp_path / "metrics.json").read_text() == json.dumps(found, indent=1) + "\n"
    said = "[demo] scoring 7 test captions against 7 test videos, before and after training\n"
    assert capsys.readouterr().out == said
    scores = first_caption_scores(model, processor, split, rows)
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), scores, atol=1e-5)
    np.testing.assert_allclose(found["after"]["scores"], scores, atol=1e-5)
    made_by = describe_model(model, processor)
    assert found["after"]["model"] == {name: made_by[name] for name in ("weights", "processor")}
    torch.manual_seed(0)
    before = first_caption_scores(type(model)(model.config), processor, split, rows)
    np.testing.assert_allclose(found["before"]["scores"], before, atol=1e-5)
    chance = np.random.default_rng(0).standard_normal((7, 7)).astype(np.float32)
    np.testing.assert_array_equal(found["random"]["scores"], chance)
    assert found["near_miss"] == near_miss_accuracy(scores, rows) and set(found["near_miss"]) == {"colour"}
    (tmp_path / "metrics.json").write_text('{"kept": 1}')
    assert demo._evaluate(split, model_folder, tmp_path) == {"kept": 1}
    assert capsys.readouterr().out == f"[demo] evaluation: {tmp_path / 'metrics.json'} is there\n"


def test_captions_and_videos_are_pairs_in_their_order():
    scores = np.array([[3.0, 1.0, 2.0], [5.0, 4.0, 3.0], [0.0, 1.0, 2.0]], dtype=np.float32)
    assert demo._metrics(scores) == {**retrieval_metrics(scores, np.arange(3)), "gallery_size": 3}


@pytest.fixture
def child(monkeypatch):
    """What the process that loads by remote code is asked; `child.ends` says how it ends."""
    seen = SimpleNamespace(asked=[], ends=None)

    def run(*arguments, **named):
        seen.asked.append((arguments, named))
        return seen.ends

    monkeypatch.setattr("subprocess.run", run)
    return seen


def test_remote_code_is_run_apart_and_its_scores_are_compared(child, model_folder, split, capsys):
    model, processor = load_model_and_processor(model_folder)
    rows = read_rows(split)[:3]
    texts, videos = [row["captions"][0] for row in rows], [str(split / row["file_name"]) for row in rows[:2]]
    with torch.no_grad():
        ours = model(**processor(text=texts, videos=videos, return_tensors="pt")).logits_per_text
    assert ours.shape == (3, 2)

    def ending(scores, code=0, errors=""):
        return SimpleNamespace(returncode=code, stderr=errors, stdout=f"a warning\nLOGITS {json.dumps(scores)}")

    child.ends = ending((ours + 5e-5).tolist())
    demo._reload(model_folder, split)
    ((command,), named) = child.asked.pop()
    assert command == [sys.executable, "-I", "-c", demo.RELOAD]
    assert json.loads(named.pop("input")) == [str(model_folder), texts, videos]
    elsewhere, environment = named.pop("cwd"), named.pop("env")
    assert named == {"capture_output": True, "text": True, "check": False}
    assert not Path(elsewhere).exists() and not Path.cwd().is_relative_to(elsewhere)
    hub = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(elsewhere) / "modules")}
    assert environment == {**os.environ, **hub}
    said = capsys.readouterr().out
    assert said.startswith("[demo] reloaded by remote code in a fresh process: scores agree within ")
    assert 3e-5 < float(said.split()[-1]) < 7e-5
    for wrong in (1e-3, -1e-3):
        child.ends = ending((ours + wrong).tolist())
        with pytest.raises(ValueError, match=r"remote code scores differ from the package's by 0\.001"):
            demo._reload(model_folder, split)
    child.ends = ending([], 1, "start" + "x" * 1999 + "!")
    with pytest.raises(ValueError) as error:
        demo._reload(model_folder, split)
    assert str(error.value) == f"{model_folder} does not load by remote code:\n{'x' * 1999}!"


def test_captions_of_groups_from_all_over_the_test_are_searched(model_folder, split, tmp_path, capsys):
    answers = demo._search(tmp_path / "index", model_folder, split)
    assert capsys.readouterr().out.endswith("[demo] index: 7 videos, 7 embedded now, 0 skipped\n")
    rows = {row["video_id"]: row for row in read_rows(split)}
    asked = [rows[f"{number}_base"] for number in (0, 1, 2, 4, 5)]
    assert [answer["row"] for answer in answers] == asked
    assert [answer["query"] for answer in answers] == [row["captions"][0] for row in asked]
    hits = VideoIndex.open(tmp_path / "index").search([row["captions"][0] for row in asked], top_k=5)
    assert [answer["results"] for answer in answers] == [[hit.to_dict() for hit in found] for found in hits]


TABLES = """
     MovingDigits test: 17 captions, 17 videos (percent; MdR, MnR: ranks)
┏━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━┳━━━━━━━┳━━━━━━━┓
┃                               ┃     R@1 ┃     R@5 ┃    R@10 ┃   MdR ┃   MnR ┃
┡━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━╇━━━━━━━╇━━━━━━━┩
│ text → video, random scores   │     1.0 │     2.0 │     3.0 │   0.0 │   0.1 │
│ text → video, before training │  1001.0 │  1002.0 │  1003.0 │  10.0 │  10.1 │
│ text → video, after training  │  2001.0 │  2002.0 │  2003.0 │  20.0 │  20.1 │
├───────────────────────────────┼─────────┼─────────┼─────────┼───────┼───────┤
│ video → text, random scores   │ 10001.0 │ 10002.0 │ 10003.0 │ 100.0 │ 100.0 │
│ video → text, before training │ 11001.0 │ 11002.0 │ 11003.0 │ 110.0 │ 110.0 │
│ video → text, after training  │ 12001.0 │ 12002.0 │ 12003.0 │ 120.0 │ 120.0 │
└───────────────────────────────┴─────────┴─────────┴─────────┴───────┴───────┘
 Own video scored
  above its near
 miss (chance 50)
┏━━━━━━━━┳━━━━━━━┓
┃ colour ┃ order ┃
┡━━━━━━━━╇━━━━━━━┩
│   87.5 │  50.0 │
└────────┴───────┘
"""


def test_the_tables_hold_every_figure_once_in_its_place(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    names = ("R@1", "R@5", "R@10", "median_rank", "mean_rank")
    metrics = {
        row: {
            f"{side}_{name}": (place + 1) / 100 + 10 * number + 100 * half
            for half, side in enumerate(("text_to_video", "video_to_text"))
            for place, name in enumerate(names)
        }
        for number, row in enumerate(("random", "before", "after"))
    }
    metrics["after"]["gallery_size"] = 17
    metrics["near_miss"] = {"colour": 0.875, "order": 0.5}
    demo._print_tables(metrics)
    shown = capsys.readouterr().out
    assert [line.rstrip() for line in shown.splitlines()] == TABLES.strip("\n").split("\n")
