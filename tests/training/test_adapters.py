"""LoRA and the running mean of the weights: what is trained, what is saved, and that a run goes on with them."""

import json

import pytest
import torch

from dmae import DMAEForTextVideoRetrieval
from dmae.inference.identity import weights_hash
from dmae.inference.loading import load_model_and_processor
from dmae.training.adapters import add_adapters, without_adapters
from dmae.training.config import LoraSection, config_from_dict
from dmae.training.loop import train

LORA = {"r": 3, "target": ["q_proj", "v_proj"]}


@pytest.fixture
def adapted(make_model):
    """(a tiny model, the same with adapters whose B is no longer 0)"""
    plain, model = make_model(seed=1), make_model(seed=1)
    add_adapters(model, LoraSection(**LORA))
    return plain, model


def frames(model, count: int = 3) -> torch.Tensor:
    side = model.config.vision_config.image_size
    return torch.randn(2, count, 3, side, side, generator=torch.Generator().manual_seed(0))


def attended(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().get_video_features(pixel_values=frames(model)).attended_embeds


def test_adapters_begin_as_nothing_and_train_alone_in_the_towers(adapted):
    plain, model = adapted
    assert torch.equal(attended(model), attended(plain))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    in_towers = {name for name in trained if name.startswith(("text_model", "vision_model"))}
    assert in_towers and all(".lora_" in name for name in in_towers)
    layers = plain.config.text_config.num_hidden_layers + plain.config.vision_config.num_hidden_layers
    assert len(in_towers) == layers * 2 * 2  # q and v, A and B
    assert {"logit_scale"} | {name for name in trained if name.startswith("temporal")} <= trained
    assert not trained & {"text_projection.weight", "visual_projection.weight"}


def test_the_merged_copy_scores_the_same_without_peft(adapted):
    plain, model = adapted
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    merged = without_adapters(model)
    assert set(merged.state_dict()) == set(plain.state_dict())
    torch.testing.assert_close(attended(merged), attended(model), atol=1e-5, rtol=1e-4)
    assert (attended(merged) - attended(plain)).abs().max() > 1e-3, "else nothing is shown"
    assert any(".lora_B" in name for name, _ in model.named_parameters()), "the original keeps its adapters"


def test_a_target_that_is_nowhere_is_refused(make_model):
    with pytest.raises(ValueError, match=r"training\.lora\.target: no query; there are .*q_proj"):
        add_adapters(make_model(), LoraSection(r=2, target=["query"]))


@pytest.mark.parametrize("words", [{"lora": LORA}, {"ema": 0.5}], ids=str)
def test_a_run_that_goes_on_ends_as_one_that_never_stopped(miniature, tiny, tmp_path, words):
    videos, whole, stopped = miniature("videofolder").videos, tmp_path / "whole", tmp_path / "stopped"
    train(tiny.tiny_config(videos, whole, save_steps=1, save_total_limit=9, max_steps=4, **words))
    (stopped).mkdir()
    (whole / "checkpoint-2").rename(stopped / "checkpoint-2")
    more = {"save_steps": 1, "save_total_limit": 9, "max_steps": 4, "resume_from_checkpoint": "last"}
    train(tiny.tiny_config(videos, stopped, **more, **words))
    assert json.loads((stopped / "run.json").read_text())["resumed_at_step"] == 2
    tiny.assert_same_weights(whole / "last", stopped / "last")
    record = json.loads((whole / "run.json").read_text())
    assert (record["trained_parameters"] < record["parameters"]) == ("lora" in words)
    for name in ("best", "last"):  # merged, or the mean: the hash is that of what lies in the folder
        assert record[name]["weights"] == weights_hash(load_model_and_processor(whole / name, device="cpu")[0])
    model = DMAEForTextVideoRetrieval.from_pretrained(whole / "last")
    assert not any("lora" in name or "n_averaged" in name for name, _ in model.named_parameters())


def test_the_saved_mean_is_the_running_mean_of_the_weights(miniature, tiny, tmp_path, monkeypatch):
    """mean <- decay * mean + (1 - decay) * weights after every step, from the weights after the first."""
    from dmae.training.loop import Run

    seen, step = [], Run._train_batch

    def watched(self, *arguments):
        result = step(self, *arguments)
        seen.append({name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()})
        return result

    monkeypatch.setattr(Run, "_train_batch", watched)
    recipe = tiny.tiny_recipe(miniature("videofolder").videos, tmp_path / "out", max_steps=3, ema=0.75)
    recipe["data"]["validation_split"] = None
    train(config_from_dict(recipe))
    mean = seen[0]
    for weights in seen[1:]:
        mean = {name: 0.75 * mean[name] + 0.25 * weights[name] for name in mean}
    saved = tiny.weights(tmp_path / "out" / "last")
    assert len(seen) == 3 and max((saved[name] - mean[name]).abs().max() for name in saved) < 1e-6
    assert max((saved[name] - seen[-1][name]).abs().max() for name in saved) > 1e-5
