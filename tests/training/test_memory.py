"""The memory a plan states: what operations hold is counted, and few pairs tell what many will take."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from dmae import DMAEConfig, DMAEForTextVideoRetrieval, FrameSampler
from dmae.training import memory
from dmae.training.config import TrainingSection
from dmae.training.memory import LiveBytes, Probe, _scores_bytes, estimate
from dmae.training.objective import Objective


def test_what_lives_is_counted_once_and_what_is_freed_no_more():
    outside = torch.zeros(1000)
    with LiveBytes() as meter:
        first = torch.ones(125, dtype=torch.float64)
        view = first.view(25, 5)[10:]
        view.add_(1)
        outside.mul_(2)
        assert meter.live == 1000
        second = first + outside[:125]
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


# ---- the arithmetic, on numbers that one can follow ---------------------------------------------------------------


@pytest.mark.parametrize(("device", "ema"), [("cpu", None), ("cuda", 0.5)])
def test_at_the_optimiser_s_step_there_are_its_own_temporaries(device, ema, monkeypatch):
    """Of one parameter after the other, or of all at once on a GPU; a running mean is a second copy of the weights."""
    model, sampler, _, options = make_probe(None)
    asked, peaks = [], [0, 0]

    def peak(name, size):
        return lambda *given: asked.append((name, *given[1:])) or size()

    monkeypatch.setattr(memory, "_whole_peak", peak("whole", lambda: peaks[0]))
    monkeypatch.setattr(memory, "_cached_peak", peak("cached", lambda: peaks[0]))
    monkeypatch.setattr(memory, "_scores_bytes", peak("scores", lambda: peaks[1]))
    same = lambda module: module  # noqa: E731
    accelerator = SimpleNamespace(device=torch.device(device), prepare_model=same, unwrap_model=same)
    model.vision_model.requires_grad_(False)
    sizes = [4 * parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    total = 4 * sum(parameter.numel() for parameter in model.parameters())
    options = options.model_copy(update={"ema": ema})
    said = estimate(model.eval(), sampler, accelerator, options, 9, 3)
    assert said.step == sum(sizes) + (sum(sizes) if device == "cuda" else 2 * max(sizes)) and model.training
    assert (said.weights, said.gradients) == (total * (2 if ema else 1), sum(sizes))
    assert said.moments == 2 * sum(sizes) and said.peak == said.weights + said.moments + said.step
    peaks[:] = [10 * total, total]
    assert estimate(model, sampler, accelerator, options, 9, 3).step == 11 * total
    estimate(model, sampler, accelerator, options.model_copy(update={"gradient_cache_chunk": 4}), 9, 3)
    assert asked == [("whole", 9), ("scores", 27)] * 2 + [("cached", 4, 9), ("scores", 27)]


def test_a_probe_is_a_batch_of_full_length():
    model, sampler, accelerator, _ = make_probe(None)
    batch = Probe(Objective(model), sampler, accelerator).batch(5)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        **dict.fromkeys(("input_ids", "attention_mask", "word_mask", "word_weights"), (5, 8)),
        **{"frames": (5, 3, 3, 48, 48), "video_mask": (5, 3), "video_ids": (5,), "caption_ids": (5,)},
    }
    assert all(batch[name].all() for name in ("attention_mask", "word_mask", "word_weights", "video_mask"))
    assert batch["frames"].dtype == torch.uint8 and batch["word_mask"].dtype == torch.bool
    assert batch["video_ids"].tolist() == batch["caption_ids"].tolist() == [0, 1, 2, 3, 4], "else none is a negative"


def test_curves_are_continued_point_by_point():
    """The highest point of two pairs, 9, is not that of many; of other lengths only the peaks can be compared."""
    curves = {2: [[1, 5], [9, 2]], 3: [[2, 5], [10, 8]], 4: [[0], [40]]}
    probe = SimpleNamespace(curves=lambda count, chunk: curves[count] if chunk is None else None)
    assert [memory._whole_peak(probe, pairs) for pairs in (2, 3, 5)] == [9, 10, 20]
    curves[3] = [[2, 5, 10], [12, 8]]
    assert [memory._whole_peak(probe, pairs) for pairs in (2, 3, 5)] == [9, 12, 18]


@pytest.mark.parametrize("highest", ["before", "after"])
def test_peaks_in_chunks_grow_with_pairs_and_with_the_chunk(highest):
    more = 1000 if highest == "before" else 0
    before, after = (lambda p, c: 10 + more + 3 * p + 5 * c), (lambda p, c: 7 + 4 * p + c)
    probe = SimpleNamespace(curves=lambda p, c: [[0, before(p, c), 1], [after(p, c), 2]])
    for chunk, pairs in ((1, 2), (4, 9), (4, 100), (7, 7), (50, 9)):
        at_once = min(chunk, pairs)
        assert memory._cached_peak(probe, chunk, pairs) == max(before(pairs, at_once), after(pairs, at_once))


def test_scores_grow_with_the_square_beyond_what_is_measured(monkeypatch):
    config = make_probe(None)[0].config
    monkeypatch.setattr(memory, "SCORED_AT_ONCE", 16)
    least = 4 * config.max_words * config.max_frames  # bytes of one pair's scores, word by frame
    sixteen = _scores_bytes(config, 16)
    assert _scores_bytes(config, 2) == 0 and _scores_bytes(config, 32) == 4 * sixteen
    assert _scores_bytes(config, 24) == round(sixteen * 2.25) and 16**2 * least < sixteen < 16 * 16**2 * least
    assert _scores_bytes(config, 8) == pytest.approx(sixteen / 4, rel=0.5)
