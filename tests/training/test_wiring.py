"""Every option of a recipe and every count of a run reaches the place that it is for."""

import copy
import json
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState

from dmae import DMAEProcessor, FrameSampler
from dmae.data.clips import stable_id
from dmae.data.registry import load_dataset
from dmae.training import gradient_cache, plan, seeds
from dmae.training.adapters import add_adapters
from dmae.training.build import build_model, build_processor, load_splits, make_accelerator, make_schedule
from dmae.training.config import TrainingSection, config_from_dict, dataset_location
from dmae.training.examples import MAX_REPLACEMENTS, TrainingExamples, to_model_inputs
from dmae.training.loop import TrainResult, train
from dmae.training.optimizer import learning_rate_of
from dmae.training.preemption import Preemption
from dmae.training.record import LogWindow, _lines_up_to, read_metrics
from dmae.training.sampler import Pair
from dmae.training.state import data_plan
from dmae.training.trainer import ModelUpkeep
from dmae.training.watch import Diverged, SkipLimit, StepWatch

ALONE = SimpleNamespace(device=torch.device("cpu"), mixed_precision="no", is_main_process=True)


@pytest.fixture(scope="module")
def rows(miniature):
    rows = load_dataset("videofolder", videos=miniature("videofolder").videos).dataset.to_list()
    return [{**row, "captions": [f"A  dog {number}", f"a cat {number}"]} for number, row in enumerate(rows)]


@pytest.fixture
def processor(tokenizer):
    sampler = FrameSampler(num_frames=4, size=16, sampling="uniform")
    return DMAEProcessor(tokenizer, sampler, max_words=24, word_weighting="uniform")


# ---------------------------------------------------------------------- from the recipe


def test_the_schedule_has_the_recipe_s_words(miniature, tiny, tmp_path):
    words = {"train_batch_size": None, "per_device_train_batch_size": 2, "seed": 9, "dataloader_drop_last": True}
    config = tiny.tiny_config(miniature("videofolder").videos, tmp_path, gradient_accumulation_steps=3, **words)
    schedule = make_schedule(config, [{"captions": ["a"] * count} for count in (1, 2, 3, 4, 5, 6, 7)], world=3)
    assert (schedule.batch_size, schedule.seed, schedule.world, schedule.accumulation) == (6, 9, 3, 3)
    assert (schedule.captions, schedule.drop_last, schedule.caption_counts) == ("one", True, [1, 2, 3, 4, 5, 6, 7])


def test_the_processor_and_the_precision_are_the_recipe_s(miniature, tiny, tmp_path):
    recipe = tiny.tiny_recipe(miniature("videofolder").videos, tmp_path, bf16=True)
    recipe["processor"]["sampling"] = "segment_random"
    recipe["data"]["holdout"] = 3
    config = config_from_dict(recipe)
    splits = load_splits(config_from_dict(tiny.tiny_recipe(miniature("videofolder").videos, tmp_path)))
    built = build_processor(config, splits)
    sampler = built.feature_extractor
    assert (sampler.sampling, sampler.size, sampler.num_frames, built.max_words) == ("segment_random", 16, 4, 16)
    assert built.word_weigher.paragraphs == len(splits.train.dataset)
    assert make_accelerator(config).mixed_precision == "bf16"
    AcceleratorState._reset_state()  # else the next test of this process would compute in bfloat16
    path = tiny.write_recipe(tmp_path / "recipe.yaml", recipe)
    assert dataset_location(str(path)).holdout == 3


def test_without_textual_attention_no_word_is_weighed(miniature, tiny, tmp_path):
    """The model would ignore the weights, so nothing is tagged."""
    recipe = tiny.tiny_recipe(miniature("videofolder").videos, tmp_path)
    made = {}
    for wanted in (True, False):
        recipe["model"]["textual_attention"] = wanted
        config = config_from_dict(recipe)
        made[wanted] = build_processor(config, load_splits(config))
    assert made[True].word_weighting != "uniform" == made[False].word_weighting
    assert made[True].word_weigher is not None and made[False].word_weigher is None


def test_attention_runs_as_the_recipe_says_and_by_sdpa_else(miniature, tiny, tmp_path):
    for said, runs in {None: "sdpa", "eager": "eager"}.items():
        recipe = tiny.tiny_recipe(miniature("videofolder").videos, tmp_path)
        recipe["model"] |= {} if said is None else {"attn_implementation": said}
        config = config_from_dict(recipe)
        model = build_model(config, build_processor(config, load_splits(config)))
        assert model.vision_model.config._attn_implementation == runs


def test_what_a_run_leaves_as_its_model(tmp_path):
    """The best one; without validation there is the last one only."""
    result = TrainResult("finished", tmp_path, 3, 1.0)
    assert result.model_dir == tmp_path / "last"
    (tmp_path / "best").mkdir()
    assert result.model_dir == tmp_path / "best"


def test_adapters_have_the_recipe_s_size_and_their_own_rate(make_model):
    options = TrainingSection(learning_rate=0.5, clip_learning_rate=0.25)
    assert learning_rate_of("text_model.q_proj.lora_A.weight", options) == ("learning_rate", 0.5)
    assert learning_rate_of("text_model.q_proj.weight", options) == ("clip_learning_rate", 0.25)
    for alpha, scale in ((None, 2.0), (6.0, 1.5)):
        model = make_model()
        add_adapters(model, r=4, alpha=alpha, dropout=0.3)
        layer = model.text_model.get_submodule("encoder.layers.0.self_attn.q_proj")
        assert layer.scaling["default"] == scale and layer.lora_dropout["default"].p == 0.3


def test_seeds_go_on_where_they_were(miniature, tiny, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(seeds, "train", lambda config: asked.append(config) or SimpleNamespace(status="preempted"))
    config = tiny.tiny_config(miniature("videofolder").videos, tmp_path, seed=5)
    assert seeds.train_seeds(config, 3) is None and len(asked) == 1
    words = asked[0].training
    assert (words.seed, words.resume_from_checkpoint) == (5, "last") and Path(words.output_dir).name == "seed-5"


# ---------------------------------------------------------------------- batches


def test_windows_draws_and_padding_reach_the_frames(rows, processor):
    rows = copy.deepcopy(rows)
    rows[0] |= {"start": 0.5, "end": 1.0}
    processor.feature_extractor.sampling = "segment_random"
    examples = TrainingExamples(rows, processor)
    pairs = [Pair(0, 0, 11), Pair(1, 0, 12)]
    decode = processor.feature_extractor.decode
    for pair, example in zip(pairs, examples.__getitems__(pairs)):
        row, generator = rows[pair.row], torch.Generator().manual_seed(pair.draw)
        assert torch.equal(example["frames"], decode(row["video"], row["start"], row["end"], generator).frames)
    others = [examples.__getitems__([Pair(1, 0, draw)])[0]["frames"] for draw in range(6)]
    assert any(frames.shape != others[0].shape or (frames != others[0]).any() for frames in others)
    short = examples.__getitems__(pairs)
    short[0]["frames"] = short[0]["frames"][:2]
    inputs = to_model_inputs(examples.collate(short), processor.feature_extractor)
    assert inputs["video_mask"].tolist()[0] == [True, True, False, False]
    assert not inputs["pixel_values"][0, 2:].any() and inputs["pixel_values"][0, :2].any()


def test_captions_that_differ_in_case_and_spaces_are_one(rows, processor):
    examples = TrainingExamples(rows, processor)
    batch = examples.collate(examples.__getitems__([Pair(2, 0, 1), Pair(3, 1, 1)]))
    assert batch["caption_ids"].tolist() == [stable_id("a dog 2"), stable_id("a cat 3")]
    ids = [rows[2]["video_id"], rows[3]["video_id"]]
    assert batch["video_ids"].tolist() == [stable_id(name) for name in ids] and batch["names"] == ids
    (example,) = one = examples.__getitems__([Pair(2, 0, 1)])
    alone = examples.collate(one)  # as a rank of many may have it
    assert torch.equal(alone["frames"], batch["frames"][:1]) and alone["names"] == ids[:1]
    assert torch.equal(alone["frames"][0, : len(example["frames"])], example["frames"])


def test_two_stand_ins_of_a_batch_are_two_videos_and_there_is_an_end_to_them(rows, processor, tmp_path):
    rows = [dict(row) for _ in range(3) for row in rows]
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for row in rows[:2]:
        row["video"] = str(tmp_path / "broken.mp4")
    for number, row in enumerate(rows):
        row["video_id"] = f"v{number}"
    found = TrainingExamples(rows, processor).__getitems__([Pair(0, 0, 5), Pair(1, 0, 5)])
    assert [example["video_id"] for example in found] == ["v5", "v6"]
    for row in rows:
        row["video"] = str(tmp_path / "broken.mp4")
    with pytest.raises(ValueError, match=f"{MAX_REPLACEMENTS + 1} videos in a row cannot be decoded") as raised:
        TrainingExamples(rows, processor).__getitems__([Pair(0, 0, 5)])
    assert str(raised.value).count("re-encode it") == 3, "the first ones say enough"
    with pytest.raises(ValueError, match=r"^2 videos in a row cannot be decoded, stopping: .*; .*broken\.mp4: "):
        TrainingExamples(rows[:2], processor).__getitems__([Pair(0, 0, 5)])  # else it would look for ever


# ---------------------------------------------------------------------- counts, records, limits


def test_a_broken_clip_of_the_validation_split_is_named_and_is_no_training_video(miniature, tiny, tmp_path, capfd):
    corpus = Path(shutil.copytree(miniature("videofolder").videos, tmp_path / "videos"))
    broken = min((corpus / "validation").rglob("*.mp4"))
    broken.write_bytes(broken.read_bytes()[:200])
    recipe = tiny.tiny_recipe(corpus, tmp_path / "out", max_steps=1)
    recipe["data"] |= {"cache_frames": "memory", "max_skipped_share": 0.0}
    result = train(config_from_dict(recipe))
    (row,) = [row for row in read_metrics(tmp_path / "out" / "metrics.jsonl") if "videos" in row]
    assert row["videos"] == 3 and len(row["skipped"]) == 1 and result.steps == 1
    assert json.loads((tmp_path / "out" / "run.json").read_text())["skipped_videos"] == {}
    assert "3 videos, 1 more could not be decoded" in capfd.readouterr().out


def test_a_window_of_the_log_is_a_mean_over_what_has_the_name(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("dmae.training.record.time", SimpleNamespace(monotonic=lambda: now[0]))
    window = LogWindow()
    window.add({"loss": torch.tensor(1.0), "share": torch.tensor(4.0)}, samples=3)
    window.add({"loss": torch.tensor(2.0)}, samples=5)
    now[0] += 4
    assert window.summary() == {"loss": 1.5, "share": 4.0, "samples_per_second": 2.0, "waiting_share": 0.0}
    now[0] += 0.5
    window.add({}, samples=2)
    assert window.summary() == {"samples_per_second": 4.0, "waiting_share": 0.0}, "less than a second is no second"
    now[0] += 1
    assert window.summary() == {"samples_per_second": 0.0, "waiting_share": 0.0}

    def slow():
        for batch in "ab":
            now[0] += 1
            yield batch

    for _ in window.timed(slow()):
        now[0] += 3
    now[0] += 1
    window.add({}, samples=5)
    assert window.summary() == {"samples_per_second": 0.56, "waiting_share": 0.2222}  # of 5 / 9 and 2 / 9


def test_a_log_goes_back_to_the_step_it_goes_on_from(tmp_path):
    steps = [{"step": 1, "loss": 1}, {"step": 2, "loss": 2}, {"step": 2, "videos": 4}, {"step": 3, "loss": 3}]
    rows = [{"step": 0, "loss": 9}, *steps]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = lambda step, validated: [json.loads(line) for line in _lines_up_to(tmp_path / "m.jsonl", step, validated)]  # noqa: E731
    assert kept(2, True) == rows[:4] and kept(2, False) == rows[:3] and kept(1, True) == rows[:2]
    assert kept(0, True) == [] == _lines_up_to(tmp_path / "none.jsonl", 2, True)


def test_missing_and_broken_are_a_share_of_all_that_are_listed():
    split = SimpleNamespace(
        report={"split": "train", "listed_videos": 12, "videos": 10},
        missing=[{"video_id": name, "reason": "gone"} for name in "ab"],
    )
    limit, broken = SkipLimit.of(split, 0.25), {"c": {"path": "c", "error": "bad"}}
    limit.check(broken)  # 3 of 12
    with pytest.raises(ValueError, match=r"4 of 12 train videos are lost.* allows 3"):
        limit.check(broken | {"d": {"path": "d", "error": "bad"}})


def test_a_video_that_is_skipped_again_is_not_new(tmp_path):
    watch = StepWatch(ALONE, {"old": {}}, SkipLimit("train", 10, [], 1.0), tmp_path / "skipped.json")
    watch.add({"names": ["a"], "skipped": [{"video_id": "old"}, {"video_id": "b"}]}, None)
    watch.add({"names": ["c"], "skipped": [{"video_id": "d"}]}, None)
    assert (watch.names, [item["video_id"] for item in watch.new]) == (["a", "c"], ["b", "d"])


def test_a_loss_that_was_no_number_in_any_part_of_a_step_stops_it(tmp_path):
    watch = StepWatch(ALONE, {"old": {}}, SkipLimit("train", 10, [], 0.5), tmp_path / "skipped.json")
    watch.add({"names": ["a"], "skipped": []}, torch.tensor(float("nan")))
    watch.add({"names": ["b"], "skipped": []}, torch.tensor(1.0))
    with pytest.raises(Diverged, match=r"step 7: .*videos of the batch: a, b"):
        watch.agree(7, torch.tensor(1.0), False)
    watch._clear()
    watch.add({"names": ["a"], "skipped": [{"video_id": "old", "path": "o", "error": "x"}]}, torch.tensor(1.0))
    assert watch.new == [] and watch.agree(8, torch.tensor(1.0), True) and not watch.agree(9, torch.tensor(1.0), False)
    for precision, stops in (("no", True), ("bf16", True), ("fp16", False)):
        accelerator = SimpleNamespace(**{**vars(ALONE), "mixed_precision": precision})
        watch = StepWatch(accelerator, {}, SkipLimit("train", 10, [], 0.5), tmp_path / "skipped.json")
        watch.add({"names": ["a"], "skipped": []}, torch.tensor(1.0))
        if stops:
            with pytest.raises(Diverged):
                watch.agree(1, torch.tensor(float("inf")), False)
        else:  # the loss scaler skips such a step by itself
            assert not watch.agree(1, torch.tensor(float("inf")), False)


def test_the_plan_of_the_data_is_every_row_as_it_is_trained():
    row = {"video_id": "a", "captions": ["one"], "start": None, "end": 2.0}
    plans = [
        data_plan([{**row, **changed}], 4)["train_rows_sha256"]
        for changed in ({}, {"video_id": "b"}, {"captions": ["two"]}, {"start": 1.0}, {"end": 3.0})
    ]
    assert len(set(plans)) == 5 and data_plan([row, row], 4)["train_videos"] == 2
    assert data_plan([row], 4)["global_batch_size"] == 4


def test_after_a_run_sigterm_is_whose_it_was():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert signal.getsignal(signal.SIGTERM) != before and not preemption.requested
        signal.raise_signal(signal.SIGTERM)
        assert preemption.requested and signal.getsignal(signal.SIGTERM) == before
    with Preemption():
        pass
    assert signal.getsignal(signal.SIGTERM) == before


# ---------------------------------------------------------------------- the plan of a run


def test_what_differs_from_the_paper_is_told_with_the_paper_s_value(tiny, make_model, tmp_path):
    for name, batch in (("msvd", 128), ("msrvtt-9k", 128), ("didemo", 64), ("activitynet", 64)):
        recipe = tiny.tiny_recipe(tmp_path, tmp_path)
        recipe["data"]["name"] = name
        lines = plan.differences_from_paper(config_from_dict(recipe), make_model().config, 4)
        assert f"differs     global batch 4 (paper: {batch})" in lines
        told = "\n".join(lines)
        assert "training.learning_rate 0.001 (paper: 0.0001)" in told and "model.mask_ratio" not in told


def test_a_trainer_s_model_knows_how_far_training_is_from_its_begin():
    told = []
    model = SimpleNamespace(clamp_logit_scale=lambda: told.append("clamped"))
    upkeep, state = ModelUpkeep(), SimpleNamespace(global_step=5, max_steps=20)
    upkeep.on_train_begin(None, state, None, model=model)
    assert model.progress == 0.25 and not told
    state.global_step = 15
    upkeep.on_step_end(None, state, None, model=model)
    assert model.progress == 0.75 and told == ["clamped"]


def test_a_replayed_chunk_falls_as_before_on_every_device_and_leaves_no_trace(monkeypatch):
    given = []
    monkeypatch.setattr(gradient_cache, "set_device_states", lambda *arguments: given.append(arguments))
    state, first = torch.get_rng_state(), torch.rand(3)
    before = torch.get_rng_state()
    with gradient_cache._replayed(state, [], ["of a GPU"]):
        assert torch.equal(torch.rand(3), first)
    assert given == [([], ["of a GPU"])] and torch.equal(torch.get_rng_state(), before)


def test_a_run_in_another_thread_leaves_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run():
        with Preemption() as preemption:
            seen.append((preemption.requested, signal.getsignal(signal.SIGTERM)))
        seen.append("left")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, before), "left"] and signal.getsignal(signal.SIGTERM) is before
