"""The memory a plan states: what operations hold is counted, and few pairs tell what many will take."""

import pytest
import torch
from accelerate import Accelerator

from dmae import DMAEConfig, DMAEForTextVideoRetrieval, FrameSampler
from dmae.training.config import TrainingSection
from dmae.training.memory import LiveBytes, Probe, _scores_bytes, estimate
from dmae.training.objective import Objective


def test_what_lives_is_counted_once_and_what_is_freed_no_more():
    outside = torch.zeros(1000)
    with LiveBytes() as meter:
        first = torch.ones(250)
        view = first.view(50, 5)[10:]
        view.add_(1)
        outside.mul_(2)
        assert meter.live == 1000
        second = first + outside[:250]
        assert meter.live == 2000
        del first
        meter._note(view.untyped_storage())
        assert meter.live == 2000  # its view still holds it, and it is the same
        del view
        assert meter.live == 1000
        del second
    assert meter.live == 0 and max(meter.curve) == 2000


def make_probe(chunk: int | None, **words) -> tuple:
    torch.manual_seed(0)
    tower = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1)
    text = dict(tower, vocab_size=400, max_position_embeddings=16, eos_token_id=1, bos_token_id=0, pad_token_id=1)
    sizes = dict(projection_dim=32, max_words=8, max_frames=3, temporal_input="patch", temporal_layers=1)
    vision = dict(tower, image_size=48, patch_size=8)
    model = DMAEForTextVideoRetrieval(DMAEConfig(text_config=text, vision_config=vision, **sizes, **words)).train()
    options = TrainingSection(train_batch_size=9, gradient_cache_chunk=chunk)
    return model, FrameSampler(num_frames=3, size=48), Accelerator(cpu=True), options


@pytest.mark.parametrize(("chunk", "words"), [(None, {}), (3, {}), (None, {"merge_tokens": 8})])
def test_two_and_three_pairs_tell_what_nine_take(chunk, words):
    model, sampler, accelerator, options = make_probe(chunk, **words)
    said = estimate(model, sampler, accelerator, options, pairs=9, world=1)
    parameters = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert (said.weights, said.moments, said.gradients) == (parameters, 2 * parameters, parameters)
    step = max(map(max, Probe(Objective(model), sampler, accelerator).curves(9, chunk)))
    assert step > 2 * parameters and abs(said.step / step - 1) < 0.05
    assert said.peak == said.weights + said.moments + said.step
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_scores_of_all_processes_are_counted():
    """They grow with all pairs of all processes, which no step on a few pairs can tell."""
    model, sampler, accelerator, options = make_probe(None)
    alone, among = (estimate(model, sampler, accelerator, options, pairs=9, world=world).step for world in (1, 16))
    assert among - alone == _scores_bytes(model.config, 144) - _scores_bytes(model.config, 9) > 2 * 4 * 144**2


@pytest.mark.slow
def test_each_means_against_memory_is_seen():
    model, sampler, accelerator, options = make_probe(None)

    def step(**words) -> int:
        return estimate(model, sampler, accelerator, options.model_copy(update=words), pairs=32, world=1).step

    whole = step()
    assert step(gradient_cache_chunk=4) < 0.5 * whole
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert step() < 0.8 * whole


def test_what_is_not_trained_has_no_gradients_and_no_moments():
    model, sampler, accelerator, options = make_probe(None)
    for parameter in model.vision_model.parameters():
        parameter.requires_grad_(False)
    trained = 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    whole = 4 * sum(parameter.numel() for parameter in model.parameters())
    said = estimate(model, sampler, accelerator, options, 4, 1)
    assert (said.weights, said.moments, said.gradients) == (whole, 2 * trained, trained) and trained < whole
