"""The state of a run is read as it was written, and a run goes on only as it began."""

import re

import pytest

from dmae.training.config import TrainingSection, config_from_dict
from dmae.training.state import RunState, refuse_other_run


def test_a_state_of_another_version_says_what_it_holds(tmp_path):
    good = vars(RunState(step=3, seconds=2.5))
    assert RunState.of({**good, "seconds": 2}, tmp_path) == RunState(step=3, seconds=2), "2 is as good a time as 2.0"
    assert RunState.of({**good, "seconds": 2.5}, tmp_path).seconds == 2.5
    older = {name: value for name, value in good.items() if name not in ("samples", "seconds", "best", "skipped")}
    assert RunState.of(older, tmp_path) == RunState(step=3)
    other = f"{re.escape(str(tmp_path))}: its state.json is of another version"
    for saved, held in (([], "list"), (7, "int"), ({"step": 3, "batch": 1}, "batch, step")):
        with pytest.raises(ValueError, match=rf"^{other} \(it holds {held}\); start the run anew$"):
            RunState.of(saved, tmp_path)
    for missing in ("step", "epoch", "batch", "validated", "plan", "config"):
        with pytest.raises(ValueError, match=other):
            RunState.of({name: value for name, value in good.items() if name != missing}, tmp_path)
    for name, value, kind in (("step", 2.5, "int"), ("seconds", "2", "float"), ("best", [1], "dict")):
        with pytest.raises(ValueError, match=re.escape(f"{name} in state.json is {value!r}, expected {kind}")):
            RunState.of({**good, name: value}, tmp_path)


def test_every_word_and_fact_that_is_another_now_is_named_and_no_other(tiny, tmp_path):
    plan = {"train_videos": 12, "global_batch_size": 4}
    config = tiny.tiny_config(tmp_path, tmp_path / "one")
    saved = RunState(plan=plan, config=config.to_dict())
    refuse_other_run(saved, config, plan, tmp_path)
    refuse_other_run(saved, tiny.tiny_config(tmp_path, tmp_path / "two", save_steps=3), plan, tmp_path)
    recipe = tiny.tiny_recipe(tmp_path, tmp_path / "two", seed=7)
    recipe["model"]["loss"] = "info_nce"
    with pytest.raises(ValueError) as error:
        refuse_other_run(saved, config_from_dict(recipe), {"train_videos": 9, "global_batch_size": 4}, tmp_path)
    changed = "training.seed: 42 -> 7; train_videos: 12 -> 9; model.loss: 'not set' -> 'info_nce'"
    assert str(error.value).startswith(f"{tmp_path}: belongs to a run with other settings or data ({changed}); go on")
    with pytest.raises(ValueError, match=r"\(model\.loss: 'info_nce' -> 'not set'; training\.seed: 7 -> 42\)"):
        refuse_other_run(RunState(plan=plan, config=config_from_dict(recipe).to_dict()), config, plan, tmp_path)


def test_a_run_that_goes_on_may_change_where_things_lie_and_how_fast_it_is(tiny, tmp_path):
    recipe = tiny.tiny_recipe(tmp_path, tmp_path / "one")
    saved = RunState(config=config_from_dict(recipe).to_dict())
    free = {
        "output_dir": "o", "overwrite_output_dir": True, "resume_from_checkpoint": "last", "logging_steps": 7,
        "per_device_eval_batch_size": 3, "gradient_cache_chunk": 2, "gradient_checkpointing": True,
        "torch_compile": True, "save_steps": 3, "save_total_limit": 5, "report_to": ["tensorboard"],
    }  # fmt: skip
    data = {"annotations": "a", "videos": "v", "cache_frames": "memory", "max_skipped_share": 0.5, "num_workers": 1}
    other = {**recipe, "data": {**recipe["data"], **data}, "training": {**recipe["training"], **free}}
    other["training"] |= {"train_batch_size": None, "per_device_train_batch_size": 2}
    other["model"] = {**recipe["model"], "attn_implementation": "eager"}
    refuse_other_run(saved, config_from_dict({**other, "variant": "small"}, source="elsewhere"), {}, tmp_path)
    bound = {*TrainingSection.model_fields} - {*free, "train_batch_size", "per_device_train_batch_size"}
    given = {
        "seed": 1, "num_train_epochs": 3, "max_steps": 9, "gradient_accumulation_steps": 2, "freeze": ["text_model"],
        "dataloader_drop_last": True, "learning_rate": 0.5, "clip_learning_rate": 0.5, "lora": {"r": 2}, "ema": 0.5,
        "optim": "adam", "adam_beta1": 0.5, "adam_beta2": 0.5, "adam_epsilon": 0.5, "weight_decay": 0.5,
        "max_grad_norm": 0.5, "lr_scheduler_type": "linear", "warmup_ratio": 0.5, "bf16": True, "fp16": True,
        "metric_for_best_model": "video_to_text_R@1",
    }  # fmt: skip
    assert bound == given.keys()
    for name, value in given.items():
        changed = {**recipe, "training": {**recipe["training"], name: value}}
        with pytest.raises(ValueError, match=rf"\(training\.{name}: .* -> [^;]*\); go on with"):
            refuse_other_run(saved, config_from_dict(changed), {}, tmp_path)
