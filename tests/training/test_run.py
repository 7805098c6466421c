"""The command line of a training run: what reaches the run, what is printed at its end, the exit codes."""

import json
from types import SimpleNamespace

import pytest

from dmae.inference import progress
from dmae.training import loop, plan, seeds
from dmae.training.build import _shards, refuse_other_parallelism
from dmae.training.run import _app, main
from dmae.training.watch import SkipLimit, StepWatch


@pytest.fixture
def run(tiny, miniature, tmp_path, monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout, stderr), the configurations that were trained in `run.trained`."""
    path = tiny.write_recipe(
        tmp_path / "recipe.yaml", tiny.tiny_recipe(miniature("videofolder").videos, tmp_path / "out")
    )

    def call(*arguments, does=None):
        def train(config):
            call.trained.append(config.training)
            return does() if does else SimpleNamespace(status="finished", model_dir="M", output_dir="O", seconds=2.6)

        monkeypatch.setattr(loop, "train", train)
        return (main(["--config", str(path), *arguments]), *capsys.readouterr())

    call.trained = []
    monkeypatch.delenv("DMAE_DEBUG", raising=False)
    return call


def test_the_end_of_a_run_is_told_once(run, monkeypatch):
    assert run() == (0, "the model is in M (3 s)\n", "")
    stopped = SimpleNamespace(status="preempted", model_dir="M", output_dir="O", seconds=2.4)
    assert run(does=lambda: stopped) == (0, "stopped as asked, saved in O (2 s)\n", "")
    monkeypatch.setattr(progress, "is_main_process", lambda: False)
    assert run() == (0, "", "") and len(run.trained) == 3


def test_options_win_over_settings_and_settings_over_the_recipe(run):
    given = ["--max-steps", "7", "--output_dir", "there", "--save-total-limit", "3", "--gradient_cache_chunk", "2"]
    given += ["--resume-from-checkpoint", "last", "--set", "training.max_steps=9", "--set", "training.seed=5"]
    assert run(*given) == (0, "the model is in M (3 s)\n", "")
    assert run("--gradient-accumulation-steps", "4")[0] == 0 == run()[0]
    words, summed, plain = run.trained
    assert (words.max_steps, words.output_dir, words.save_total_limit, words.seed) == (7, "there", 3, 5)
    assert (words.gradient_cache_chunk, summed.gradient_accumulation_steps) == (2, 4)
    assert words.resume_from_checkpoint == "last" and plain.resume_from_checkpoint is None
    assert (plain.max_steps, plain.seed, plain.gradient_accumulation_steps) == (-1, 42, 1)


def test_what_ends_a_run_has_its_code_and_its_line(run, monkeypatch):
    def fails(error):
        def does():
            raise error

        return does

    for error in (ValueError("no such word"), OSError("no such word")):
        assert run(does=fails(error)) == (1, "", "error: no such word\n")
    interrupted = "interrupted; go on with --resume-from-checkpoint last\n"
    assert run(does=fails(KeyboardInterrupt())) == (130, "", interrupted)
    assert run("--no-such-option")[0] == 2 and run("--seeds", "1")[0] == 2
    code, _, told = run("--set", "training.sed=1")
    assert code == 1 and "did you mean 'seed'?" in told
    monkeypatch.setenv("DMAE_DEBUG", "1")
    with pytest.raises(ValueError, match="no such word"):
        run(does=fails(ValueError("no such word")))


def test_seeds_and_a_dry_run_take_the_place_of_a_run(run, monkeypatch):
    asked = []
    monkeypatch.setattr(seeds, "train_seeds", lambda config, count: asked.append((config.training.seed, count)))
    assert run("--seeds", "3", "--set", "training.seed=7") == (0, "", "") and asked == [(7, 3)]
    monkeypatch.setattr(plan, "describe", lambda config: f"a plan of {config.training.max_steps} steps")
    assert run("--dry-run", "--max-steps", "6") == (0, "a plan of 6 steps\n", "")
    monkeypatch.setattr(progress, "is_main_process", lambda: False)
    assert run("--dry_run", "--seeds", "3") == (0, "", "") and run.trained == [] and len(asked) == 1


# ---- refused or told before and while it runs -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TP", "CP", "SP", "DP_SHARD"])
def test_a_launcher_s_other_parallelism_is_refused(name, monkeypatch):
    variable = f"PARALLELISM_CONFIG_{name}_SIZE"
    monkeypatch.setenv(variable, "2")
    monkeypatch.delenv("ACCELERATE_USE_PARALLELISM_CONFIG", raising=False)
    refuse_other_parallelism()
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "True")
    with pytest.raises(ValueError, match=f"{variable}=2: only plain data parallelism is supported"):
        refuse_other_parallelism()
    monkeypatch.setenv(variable, "1")
    refuse_other_parallelism()


def test_which_videos_were_skipped_is_kept_and_written_by_one_process(tmp_path):
    broken = {"video_id": "é", "path": "p", "error": "bad"}
    for main_process in (True, False):
        accelerator = SimpleNamespace(device="cpu", is_main_process=main_process)
        report = tmp_path / f"{main_process}.json"
        watch = StepWatch(accelerator, {}, SkipLimit("train", 10, [], 0.1), report)
        watch.note_skipped([])
        assert not report.exists()
        watch.note_skipped([broken])
        assert watch.skipped == {"é": {"path": "p", "error": "bad"}} and report.is_file() is main_process
        with pytest.raises(ValueError, match="2 of 10 train videos are lost: 2 that cannot be decoded"):
            watch.note_skipped([{**broken, "video_id": "b"}])
    text = (tmp_path / "True.json").read_text(encoding="utf-8")
    assert json.loads(text).keys() == {"é", "b"} and "é" in text
    with pytest.raises(ValueError, match=r"/v/a\.mp4 lies in no tar; the word is for webdataset corpora"):
        _shards([{"video": "/v/a.mp4"}])


def test_the_command_offers_nothing_of_the_shell_and_its_tracebacks_show_no_values(run):
    """What a traceback shows of a run's variables may be somebody's token."""
    code, shown, _ = run("--help")
    assert code == 0 and "--config" in shown and "--install-completion" not in shown
    assert _app().pretty_exceptions_enable is False
