"""Several seeds by one command: each its own run, the mean and its interval, going on where it was."""

import json

import numpy as np
import pytest
from scipy import stats

from dmae.hub_cards.cards import model_card
from dmae.hub_cards.record import find_model, find_source
from dmae.inference.identity import processor_hash, weights_hash
from dmae.inference.loading import load_model_and_processor
from dmae.training.run import main
from dmae.training.seeds import mean_with_interval


def test_the_interval_is_students():
    random = np.random.default_rng(0)
    for count in (2, 5, 20):
        values = random.normal(0.3, 0.1, count).tolist()
        found = mean_with_interval(values)
        low, high = stats.t.interval(0.95, count - 1, loc=np.mean(values), scale=stats.sem(values))
        assert (found["mean"], found["low"], found["high"]) == pytest.approx((np.mean(values), low, high))


def test_the_interval_holds_the_true_mean_as_often_as_it_says():
    random = np.random.default_rng(1)
    held = [mean_with_interval(random.normal(5, 2, 4).tolist()) for _ in range(2000)]
    assert 0.93 < np.mean([found["low"] <= 5 <= found["high"] for found in held]) < 0.97


def test_two_seeds_are_trained_scored_on_the_test_split_and_summed_up(miniature, tiny, tmp_path, capsys):
    recipe = tiny.tiny_recipe(miniature("videofolder").videos, tmp_path / "out", max_steps=2)
    path = tiny.write_recipe(tmp_path / "recipe.yaml", recipe)
    assert main(["--config", str(path), "--seeds", "2"]) == 0
    assert "2 seeds (42, 43): mean ± 95 % interval" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "seeds.json").read_text())
    assert summary["seeds"] == [42, 43] and summary["split"] == "test"
    for name in ("text_to_video_R@1", "video_to_text_mean_rank"):
        values = []
        for seed in (42, 43):
            results = json.loads((tmp_path / "out" / f"seed-{seed}" / "test" / "results.json").read_text())
            assert json.loads((tmp_path / "out" / f"seed-{seed}" / "run.json").read_text())["seed"] == seed
            assert results["data"]["split"] == "test" and results["seed"] == seed
            values.append(results["metrics"][name])
        assert summary["metrics"][name] == mean_with_interval(values)
    one, two = (tiny.weights(tmp_path / "out" / f"seed-{seed}" / "last") for seed in (42, 43))
    assert any((one[name] != two[name]).any() for name in one)
    table = (tmp_path / "out" / "seeds.md").read_text().split("\n\n", 1)[1].strip()
    assert table.startswith("| ") and "| text → video | " in table
    model_dir = find_model(tmp_path / "out")
    assert model_dir.parent.name == "seed-42"
    model, processor = load_model_and_processor(str(model_dir))
    identity = {"weights": weights_hash(model), "processor": processor_hash(processor)}
    card = model_card(find_source(model_dir, identity), model, "me/two-seeds")
    assert table in card and "test split, 2 seeds (42, 43)" in card
    assert find_source(model_dir, identity | {"weights": "others"}).seeds == {}
