"""`train(config)`: what it learns, writes and refuses, on real clips and tiny towers."""

import importlib.metadata
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from dmae.inference.identity import weights_hash
from dmae.inference.loading import load_model_and_processor
from dmae.training.build import make_accelerator
from dmae.training.config import config_from_dict
from dmae.training.loop import Run, train
from dmae.training.record import read_metrics


@pytest.fixture(scope="module")
def finished(miniature, tiny, tmp_path_factory):
    """A whole run of two epochs."""
    output = tmp_path_factory.mktemp("run") / "out"
    recipe = tiny.tiny_recipe(miniature("videofolder").videos, output, num_train_epochs=2, report_to=["tensorboard"])
    recipe["data"]["num_workers"] = 1
    return train(config_from_dict(recipe))


@pytest.fixture
def corpus(miniature, tmp_path):
    """A copy of the clips that a test may damage."""
    return Path(shutil.copytree(miniature("videofolder").videos, tmp_path / "videos"))


def clips(corpus: Path, split: str = "train") -> list[Path]:
    return sorted((corpus / split).rglob("*.mp4"))


def test_a_run_leaves_models_checkpoints_log_record_and_curves(finished):
    output = finished.output_dir
    assert finished.status == "finished" and finished.steps == 6 and finished.model_dir == output / "best"
    assert (output / "curves.png").stat().st_size > 5000
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-6"}
    assert list((output / "tensorboard").rglob("events.*"))
    rows = read_metrics(output / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    validations = [row for row in rows if "text_to_video_R@1" in row]
    assert [(row["step"], row["videos"]) for row in validations] == [(3, 4), (6, 4)]
    assert finished.metrics["text_to_video_rsum"] == max(row["text_to_video_rsum"] for row in validations)


def test_the_record_says_what_results_depend_on(finished):
    record = json.loads((finished.output_dir / "run.json").read_text())
    assert record["status"] == "finished" and record["steps"] == 6 and record["wall_seconds"] > 0
    assert record["splits"]["train"]["videos"] == 12 and record["splits"]["validation"]["missing_videos"] == 0
    assert (record["frames"], record["words"], record["ties"], record["seed"]) == (4, 16, "average", 42)
    assert (record["world_size"], record["global_batch"], record["dtype"]) == (1, 4, "fp32")
    packages = record["code"]["packages"]
    assert packages == {name: importlib.metadata.version(name) for name in packages} and "torch" in packages
    assert record["hardware"]["device"] == "cpu" and record["config"]["training"]["train_batch_size"] == 4
    assert record["best"]["metric"] == "text_to_video_rsum" and record["best"]["videos"] == 4


def test_the_record_names_the_weights_of_both_saved_models(finished):
    """By these hashes a card knows the results of its model from those of any other."""
    record = json.loads((finished.output_dir / "run.json").read_text())
    for name in ("best", "last"):
        model, _ = load_model_and_processor(finished.output_dir / name, device="cpu")
        assert record[name]["weights"] == weights_hash(model)


def test_the_best_model_loads_with_its_processor_and_scores_clips(finished, miniature):
    from dmae import DMAEForTextVideoRetrieval, DMAEProcessor

    model = DMAEForTextVideoRetrieval.from_pretrained(finished.model_dir).eval()
    processor = DMAEProcessor.from_pretrained(finished.model_dir)
    assert processor.word_weigher.paragraphs == 12  # the TF-IDF table travels with the model
    video = next(miniature("videofolder").videos.glob("test/**/*.mp4"))
    with torch.no_grad():
        batch = processor(text=["a red square", "a blue box"], videos=[str(video)], return_tensors="pt")
        assert model(**batch).logits_per_text.shape == (2, 1)


def test_best_is_the_epoch_with_the_highest_metric_and_last_the_last(miniature, tiny, tmp_path, monkeypatch):
    """Three epochs whose validation says 0.2, 0.9, 0.5: `best` has the weights of the second, the record its place."""
    told, weights = iter([0.2, 0.9, 0.5]), []

    def validated(accelerator, model, *arguments):
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        value = next(told)
        names = [f"{side}_{name}" for side in ("text_to_video", "video_to_text") for name in ("R@1", "R@10", "rsum")]
        metrics = dict.fromkeys(names, 1 - value) | {"video_to_text_R@1": value}
        return {"metrics": metrics, "videos": 4, "texts": 4, "skipped": []}

    monkeypatch.setattr("dmae.training.loop.validate", validated)
    words = {"num_train_epochs": 3, "metric_for_best_model": "video_to_text_R@1"}
    result = train(tiny.tiny_config(miniature("videofolder").videos, tmp_path / "out", **words))
    for folder, epoch in (("best", 1), ("last", 2)):
        saved = tiny.weights(tmp_path / "out" / folder)
        assert all(torch.equal(saved[name], weights[epoch][name]) for name in saved)
        assert any(not torch.equal(saved[name], weights[epoch - 1][name]) for name in saved)
    best = json.loads((tmp_path / "out" / "run.json").read_text())["best"]
    assert (best["step"], best["epoch"], best["value"], best["metric"]) == (6, 2.0, 0.9, "video_to_text_R@1")
    assert result.metrics["video_to_text_R@1"] == 0.9


def test_training_lowers_the_loss(miniature, tiny, tmp_path):
    words = {"num_train_epochs": 15, "train_batch_size": 12}
    recipe = tiny.tiny_recipe(miniature("videofolder").videos, tmp_path / "out", **words)
    recipe["data"] |= {"cache_frames": "memory", "validation_split": None}
    result = train(config_from_dict(recipe))
    losses = [row["contrastive"] for row in read_metrics(result.output_dir / "metrics.jsonl") if "loss" in row]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert result.metrics == {} and result.model_dir.name == "last"


def test_frames_in_memory_do_not_change_the_result(miniature, tiny, tmp_path):
    for where in ("none", "memory"):
        recipe = tiny.tiny_recipe(miniature("videofolder").videos, tmp_path / where, max_steps=2)
        recipe["data"]["cache_frames"] = where
        train(config_from_dict(recipe))
    tiny.assert_same_weights(tmp_path / "none" / "last", tmp_path / "memory" / "last")


def test_a_chunked_batch_equals_the_whole_batch(miniature, tiny, tmp_path):
    videos = miniature("videofolder").videos
    losses = {}
    for chunk in (None, 3):
        output = tmp_path / str(chunk)
        train(tiny.tiny_config(videos, output, max_steps=2, train_batch_size=8, gradient_cache_chunk=chunk))
        losses[chunk] = [row["loss"] for row in read_metrics(output / "metrics.jsonl") if "loss" in row]
    assert losses[3] == pytest.approx(losses[None], rel=1e-5)
    whole, chunked = (tiny.weights(tmp_path / name / "last") for name in ("None", "3"))
    assert max((whole[name] - chunked[name]).abs().max() for name in whole) < 1e-5


def test_a_broken_clip_is_replaced_counted_and_named(corpus, tiny, tmp_path):
    broken = clips(corpus)[0]
    broken.write_bytes(b"no video at all")
    recipe = tiny.tiny_recipe(corpus, tmp_path / "out", num_train_epochs=1)
    recipe["data"] |= {"max_skipped_share": 0.2, "validation_split": None}
    result = train(config_from_dict(recipe))
    assert result.status == "finished" and result.steps == 3
    report = json.loads((tmp_path / "out" / "skipped_videos.json").read_text())
    assert [item["path"] for item in report.values()] == [str(broken)]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["skipped_videos"] == report


def test_too_many_broken_clips_stop_the_run(corpus, tiny, tmp_path):
    for path in clips(corpus)[:4]:
        path.write_bytes(path.read_bytes()[:200])
    recipe = tiny.tiny_recipe(corpus, tmp_path / "out", num_train_epochs=1)
    recipe["data"] |= {"max_skipped_share": 0.2, "validation_split": None}
    with pytest.raises(
        ValueError, match=r"3 of 12 train videos are lost: 3 that cannot .*max_skipped_share=0.2 allows 2"
    ):
        train(config_from_dict(recipe))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "failed"


def test_missing_and_broken_clips_count_together(corpus, tiny, tmp_path, capfd):
    """Two of twelve missing and two broken: each alone is allowed, together they are not."""
    paths = clips(corpus)
    for path in paths[:2]:
        path.unlink()
    for path in paths[2:4]:
        path.write_bytes(path.read_bytes()[:200])
    recipe = tiny.tiny_recipe(corpus, tmp_path / "out", num_train_epochs=1)
    recipe["data"] |= {"max_skipped_share": 0.3, "validation_split": None, "cache_frames": "memory"}
    lost = r"4 of 12 train videos are lost: 2 missing \(first: .*\), 2 that cannot be decoded \(first: "
    with pytest.raises(ValueError, match=lost):
        train(config_from_dict(recipe))
    assert not (tmp_path / "out" / "metrics.jsonl").read_text(), "known before the first step"
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["splits"]["train"]["missing_videos"] == 2 and len(record["skipped_videos"]) == 2
    assert "warning: 2 of 12 train videos are lost: 2 missing (first: " in capfd.readouterr().out


@pytest.mark.parametrize("split", ["train", "validation"])
def test_too_many_missing_clips_stop_a_run_before_it_writes(corpus, tiny, tmp_path, split):
    for path in clips(corpus, split)[:3]:
        path.unlink()
    config = tiny.tiny_config(corpus, tmp_path / "out")
    with pytest.raises(ValueError, match=rf"3 of \d+ {split} videos are lost.*max_skipped_share=0.05 allows 0"):
        train(config)
    assert os.listdir(tmp_path / "out") == [".lock"]


def test_a_batch_that_never_comes_is_refused(miniature, tiny, tmp_path):
    config = tiny.tiny_config(miniature("videofolder").videos, tmp_path / "out", train_batch_size=13)
    with pytest.raises(ValueError, match=r"a batch of 13 pairs needs as many videos.*there are 12"):
        train(config)


def test_a_loss_that_is_no_number_names_the_videos_and_keeps_the_checkpoint(miniature, tiny, tmp_path):
    config = tiny.tiny_config(miniature("videofolder").videos, tmp_path / "out", save_steps=1, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"step \d+: .*ideos of .*batch: ") as error:
        train(config)
    metadata = (miniature("videofolder").videos / "train" / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in metadata]
    assert any((row.get("video_id") or row["file_name"]) in str(error.value) for row in rows)
    assert list((tmp_path / "out").glob("checkpoint-*"))


def test_a_folder_with_another_run_is_not_mixed_with(finished, tiny, miniature):
    config = tiny.tiny_config(miniature("videofolder").videos, finished.output_dir)
    with pytest.raises(ValueError, match="holds checkpoint-6 of an earlier run"):
        train(config)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("training.train_batch_size=6", "global_batch_size: 4 -> 6"),
        ("training.learning_rate=0.5", "training.learning_rate: 0.001 -> 0.5"),
        ("training.seed=7", "training.seed: 42 -> 7"),
        ("training.num_train_epochs=3", "training.num_train_epochs: 2 -> 3"),
        ("model.partial_margin=0.3", "model.partial_margin: 'not set' -> 0.3"),
        ("data.captions_per_epoch=all", "data.captions_per_epoch: 'one' -> 'all'"),
    ],
)
def test_a_refused_resume_writes_nothing(finished, tiny, miniature, word, said):
    before = contents(finished.output_dir)
    with pytest.raises(ValueError, match=re.escape(said)):
        train(resumed_config(finished, tiny, miniature, word))
    assert contents(finished.output_dir) == before


def test_a_resume_on_other_data_or_without_a_checkpoint_writes_nothing(finished, tiny, corpus):
    before = contents(finished.output_dir)
    lines = (corpus / "train" / "metadata.jsonl").read_text().splitlines()
    (corpus / "train" / "metadata.jsonl").write_text("\n".join(lines[1:]) + "\n")
    for name, said in (("last", "train_videos: 12 -> 11"), ("nowhere", "no checkpoint there")):
        recipe = tiny.tiny_recipe(corpus, finished.output_dir, resume_from_checkpoint=name)
        with pytest.raises((ValueError, OSError), match=said):
            train(config_from_dict(recipe))
    assert contents(finished.output_dir) == before


def test_a_run_that_goes_on_is_where_its_checkpoint_was(finished, tiny, miniature):
    """The weights, the rates and what a scheduled margin reads of the third step of six; nothing is written."""
    before, word = contents(finished.output_dir), f"training.resume_from_checkpoint={finished.output_dir}/checkpoint-3"
    config = resumed_config(finished, tiny, miniature, word, "training.logging_steps=7")
    run = Run(config, make_accelerator(config))
    assert (run.state.step, run.state.epoch, run.state.samples, run.total_steps) == (3, 1, 12, 6)
    assert run.bare_objective.progress == 0.5 and run.scheduler.last_epoch == 3
    assert run.state.config["training"]["logging_steps"] == 7 and run.resumed_from.name == "checkpoint-3"
    saved = tiny.weights(run.resumed_from)
    assert all(torch.equal(tensor, saved[f"model.{name}"]) for name, tensor in run.model.state_dict().items())
    assert contents(finished.output_dir) == before


def test_a_resume_may_change_where_things_lie_and_what_is_told(finished, tiny, miniature, tmp_path, capfd):
    """The finished run, moved: there is nothing left to train, and the record keeps what it had."""
    shutil.copytree(finished.output_dir, tmp_path / "moved")
    words = ["training.logging_steps=5", "data.num_workers=0", f"training.output_dir={tmp_path / 'moved'}"]
    train(resumed_config(finished, tiny, miniature, *words))
    before, after = (
        json.loads((folder / "run.json").read_text()) for folder in (finished.output_dir, tmp_path / "moved")
    )
    for name in ("best", "steps", "samples", "seed", "total_steps", "skipped_videos"):
        assert after[name] == before[name]
    assert (after["status"], after["resumed_at_step"]) == ("finished", 6)
    last = tmp_path / "moved" / "checkpoint-6"
    assert after["resumed_from"] == str(last) and f"going on from {last}, step 6 of 6\n" in capfd.readouterr().out


def test_a_failure_after_a_resume_keeps_best_and_steps_in_the_record(finished, tiny, miniature, tmp_path, monkeypatch):
    shutil.copytree(finished.output_dir, tmp_path / "moved")
    monkeypatch.setattr("dmae.training.loop.plot_curves", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(resumed_config(finished, tiny, miniature, f"training.output_dir={tmp_path / 'moved'}"))
    record = json.loads((tmp_path / "moved" / "run.json").read_text())
    assert record["status"] == "failed" and record["steps"] == 6
    assert record["best"] == json.loads((finished.output_dir / "run.json").read_text())["best"]


def resumed_config(finished, tiny, miniature, *words):
    """The configuration of `finished`, going on from its last checkpoint, with `section.key=value` words over it."""
    recipe = tiny.tiny_recipe(miniature("videofolder").videos, finished.output_dir, resume_from_checkpoint="last")
    for word in words:
        place, value = word.split("=", 1)
        section, key = place.split(".")
        recipe[section][key] = yaml.safe_load(value)
    return config_from_dict(recipe)


def contents(folder: Path) -> dict:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_a_split_must_not_contain_training_videos(corpus, tiny, tmp_path):
    shutil.rmtree(corpus / "validation")
    shutil.copytree(corpus / "train", corpus / "validation")
    lines = [json.loads(line) for line in (corpus / "train" / "metadata.jsonl").read_text().splitlines()]
    for split in ("train", "validation"):
        named = [json.dumps({**line, "video_id": line.get("video_id") or line["file_name"]}) for line in lines]
        (corpus / split / "metadata.jsonl").write_text("\n".join(named) + "\n")
    with pytest.raises(ValueError, match="are in both training and validation"):
        train(tiny.tiny_config(corpus, tmp_path / "out"))


@pytest.mark.parametrize(
    "words", [{"gradient_checkpointing": True}, {"bf16": True}, {"gradient_accumulation_steps": 2}], ids=str
)
def test_options_train(miniature, tiny, tmp_path, words):
    config = tiny.tiny_config(miniature("videofolder").videos, tmp_path / "out", num_train_epochs=1, **words)
    result = train(config)
    assert result.steps == (2 if "gradient_accumulation_steps" in words else 3)
    assert all(torch.isfinite(tensor).all() for tensor in tiny.weights(tmp_path / "out" / "last").values())


def test_the_margin_schedule_trains(miniature, tiny, tmp_path):
    recipe = tiny.tiny_recipe(miniature("videofolder").videos, tmp_path / "out", num_train_epochs=1)
    recipe["model"] |= {"margin_schedule": "linear", "partial_margin_start": 0.0}
    result = train(config_from_dict(recipe))
    rows = [row for row in read_metrics(result.output_dir / "metrics.jsonl") if "loss" in row]
    assert rows[0]["partial_order"] < rows[-1]["partial_order"]  # the margin grows from 0
