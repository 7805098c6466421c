"""Two learning rates, decay only on matrices, a tenth of warm-up."""

import copy

import pytest
import torch

from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval
from dmae.training.config import TrainingSection
from dmae.training.optimizer import current_rates, freeze, make_optimizer, make_scheduler


@pytest.fixture
def model():
    return DMAEForTextVideoRetrieval(DMAEConfig.tiny(interaction="wti"))


def placed(model, optimizer) -> dict[str, dict]:
    """Parameter name -> its group."""
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    return {name: groups[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in groups}


def test_clip_and_new_modules_learn_at_their_own_rates(model):
    groups = placed(model, make_optimizer(model, TrainingSection()))
    assert len(groups) == len(list(model.parameters()))
    for name, group in groups.items():
        new = name.startswith(("temporal.", "fc_text", "fc_video", "text_predictor", "visual_predictor"))
        assert group["lr"] == (1e-4 if new else 1e-7), name
    assert groups["logit_scale"]["lr"] == 1e-7


def test_only_matrices_decay(model):
    for name, group in placed(model, make_optimizer(model, TrainingSection())).items():
        flat = dict(model.named_parameters())[name].dim() < 2
        assert group["weight_decay"] == (0.0 if flat else 0.2), name


def test_the_optimiser_has_the_recipe_s_numbers(model):
    words = {"adam_beta1": 0.7, "adam_beta2": 0.8, "adam_epsilon": 0.25, "weight_decay": 0.5}
    for kind in ("adam", "adamw"):
        optimizer = make_optimizer(model, TrainingSection(optim=kind, **words))
        assert type(optimizer).__name__.lower() == kind
        for group in optimizer.param_groups:
            assert (group["betas"], group["eps"], group["weight_decay"] in (0.0, 0.5)) == ((0.7, 0.8), 0.25, True)
    group = make_optimizer(model, TrainingSection()).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.9, 0.98), 1e-6)


def test_one_rate_when_nothing_is_pretrained(model):
    optimizer = make_optimizer(model, TrainingSection(clip_learning_rate=None, optim="adam"))
    assert current_rates(optimizer) == {"learning_rate": 1e-4} and type(optimizer).__name__ == "Adam"


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_one_kernel_on_a_cpu_steps_as_many_do(model, kind):
    options, other = TrainingSection(optim=kind, learning_rate=1e-2, clip_learning_rate=1e-2), copy.deepcopy(model)
    here, plain = make_optimizer(model, options, torch.device("cpu")), make_optimizer(other, options)
    assert [group["fused"] for group in here.param_groups] == [True] * len(here.param_groups)
    assert make_optimizer(other, options, torch.device("meta")).defaults["fused"] is None
    for step in range(3):
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            ours.grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(step))
            theirs.grad = ours.grad.clone()
        here.step(), plain.step()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_frozen_parameters_are_not_optimised(model):
    freeze(model, ["vision_model.", "text_model."])
    groups = placed(model, make_optimizer(model, TrainingSection()))
    assert groups and not any(name.startswith(("vision_model", "text_model")) for name in groups)
    with pytest.raises(ValueError, match=r"no parameter begins with 'vison_model'; the model's parts: .*vision_model"):
        freeze(model, ["vison_model"])


def test_cosine_after_a_tenth_of_warm_up(model):
    options = TrainingSection(learning_rate=1.0, clip_learning_rate=0.5)
    optimizer = make_optimizer(model, options)
    scheduler, rates = make_scheduler(optimizer, options, 100), []
    for _ in range(100):
        rates.append(current_rates(optimizer))
        optimizer.step()
        scheduler.step()
    assert [rates[step]["learning_rate"] for step in (0, 5, 10)] == [0.0, 0.5, 1.0]
    assert rates[55]["learning_rate"] == pytest.approx(0.5) and rates[99]["learning_rate"] < 1e-3
    assert all(rate["clip_learning_rate"] == rate["learning_rate"] / 2 for rate in rates)
