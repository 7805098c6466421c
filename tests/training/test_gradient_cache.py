"""A batch in chunks: the terms and the gradients of the whole batch, one exchange between ranks, one average."""

import copy
import importlib.util
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dmae.training.gradient_cache import cached_backward
from dmae.training.objective import Objective


@pytest.fixture(scope="module")
def pairs():
    """The seven pairs and the models that two ranks are compared on: `pairs.make_batch`, `pairs.make_model`."""
    spec = importlib.util.spec_from_file_location("two_ranks", Path(__file__).with_name("two_ranks.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def alone(told: list | None = None):
    """What an accelerator does in one process; each `no_sync` is told where `backward` is."""
    told = [] if told is None else told

    @contextmanager
    def no_sync(module):
        told.append("no_sync")
        yield
        told.append("synced")

    def backward(loss):
        told.append("backward")
        loss.backward()

    return SimpleNamespace(
        unwrap_model=lambda objective: objective, autocast=nullcontext, no_sync=no_sync, backward=backward
    )


@pytest.mark.parametrize(("name", "chunk"), [("mean", 2), ("partial_order_patch_wti", 3), ("neg_nce", 9)])
def test_chunks_have_the_terms_and_the_gradients_of_the_whole_batch(pairs, name, chunk):
    """Seven pairs in four chunks, in three and in one: every term that is logged, every parameter."""
    model = pairs.make_model(pairs.LOSSES[name] | {"partial_weight": 0.5})
    batch = pairs.make_batch(model.config)
    whole, chunked = Objective(model), Objective(copy.deepcopy(model))
    expected = whole(**batch)
    expected["loss"].backward()
    terms = cached_backward(alone(), chunked, batch, chunk)
    assert terms.keys() == expected.keys() and ("partial_order" in terms) == (name == "partial_order_patch_wti")
    for term, value in terms.items():
        torch.testing.assert_close(value.detach(), expected[term].detach(), rtol=1e-6, atol=1e-9, msg=term)
    given = dict(chunked.named_parameters())
    largest = max(p.grad.abs().max() for p in whole.parameters() if p.grad is not None)
    for parameter, reference in whole.named_parameters():
        assert (given[parameter].grad is None) == (reference.grad is None), parameter
        if reference.grad is not None:
            assert (given[parameter].grad - reference.grad).abs().max() < 1e-6 * largest, parameter


def test_only_the_last_chunk_lets_the_ranks_average(pairs):
    """DDP divides what it averages by the number of processes: twice averaged, the first chunks would count half."""
    model, told = pairs.make_model(pairs.LOSSES["neg_nce"]), []
    cached_backward(alone(told), Objective(model), pairs.make_batch(model.config), 3)
    assert told == ["no_sync", "backward", "synced"] * 2 + ["backward"]
