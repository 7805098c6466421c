"""The state of a run is read as it was written, and a run goes on only as it began."""

import re

import pytest

from dmae.training.config import config_from_dict
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
