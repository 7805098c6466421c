"""Two ranks as two threads that exchange tensors at a barrier: what each gathers, sums, logs and gets back as gradient.

`test_distributed.py` does the same with two processes and gloo; here every number is looked at.
"""

import copy
import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dmae.training import distributed
from dmae.training.distributed import gather_tensors, global_sum, rank, value_of_all, world_size
from dmae.training.objective import Objective
from dmae.training.sampler import rank_share


class TwoThreads:
    """The part of torch.distributed that is used, between two threads."""

    def __init__(self):
        self.barrier, self.given, self.own = threading.Barrier(2, timeout=300), {}, threading.local()

    def is_available(self):
        return True

    is_initialized = is_available

    def get_world_size(self):
        return 2

    def get_rank(self):
        return self.own.rank

    def exchange(self, tensor) -> list[torch.Tensor]:
        self.given[self.own.rank] = tensor.detach().clone()
        self.barrier.wait()
        both = [self.given[0], self.given[1]]
        self.barrier.wait()
        return both

    def all_gather(self, places, tensor):
        assert tensor.dtype != torch.bool and tensor.is_contiguous(), "NCCL takes neither"
        for place, given in zip(places, self.exchange(tensor), strict=True):
            place.copy_(given)

    def all_reduce(self, tensor):
        assert tensor.is_contiguous()
        one, other = self.exchange(tensor)
        tensor.copy_(one + other)


@pytest.fixture
def on_both(monkeypatch):
    """on_both(work) -> [work(0), work(1)], at the same time."""
    ranks = TwoThreads()
    monkeypatch.setattr(distributed, "dist", ranks)

    def started(number, work):
        ranks.own.rank = number
        return work(number)

    def both(work):
        with ThreadPoolExecutor(2) as threads:
            return [running.result() for running in [threads.submit(started, number, work) for number in (0, 1)]]

    return both


def test_one_process_is_the_first_of_one_and_exchanges_nothing(monkeypatch):
    assert (world_size(), rank()) == (1, 0)
    tensor, tensors = torch.ones(2), {"a": torch.ones(2)}
    assert global_sum(tensor) is tensor and gather_tensors(tensors) is tensors
    own = torch.tensor(2.0, requires_grad=True)
    value_of_all(own * 3).backward()
    assert value_of_all(own) == 2.0 and own.grad == 3.0
    monkeypatch.setattr(distributed.dist, "is_available", lambda: False)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: 1 / 0)
    assert world_size() == 1, "a torch without distributed has nothing else to be asked"


def test_every_rank_has_the_sum_and_its_own_gradient(on_both):
    def work(number):
        own = torch.tensor([number + 1.0, 10.0])
        total = global_sum(own)
        part = torch.tensor(number + 1.0, requires_grad=True)
        value = value_of_all(part * part)
        value.backward()
        return world_size(), rank(), total.tolist(), own.tolist(), value.item(), part.grad.item()

    first, second = on_both(work)
    assert first == (2, 0, [3.0, 20.0], [1.0, 10.0], 2.5, 2.0)
    assert second == (2, 1, [3.0, 20.0], [2.0, 10.0], 2.5, 4.0)


@pytest.mark.parametrize("sizes", [((2, 3), (3, 5)), ((3, 5), (2, 3)), ((2, 3), (2, 3))])
def test_batches_of_different_sizes_are_joined_in_order(on_both, sizes):
    """Shorter ones are padded with what no mask shows; each rank gets the gradients of both for its own rows."""
    lengths, total = max(length for _, length in sizes), sum(rows for rows, _ in sizes)
    torch.manual_seed(0)
    words = [torch.randn(rows, length, 2) for rows, length in sizes]
    factors = [torch.randn(total, lengths, 2) for _ in sizes]

    def work(number):
        (rows, length), own = sizes[number], words[number].clone().requires_grad_()
        mask = torch.ones(rows, length, dtype=torch.bool)
        found = gather_tensors({"words": own, "mask": mask, "ids": torch.arange(rows) + 10 * number})
        (found["words"] * factors[number]).sum().backward()
        assert torch.equal(gather_tensors({"ids": torch.arange(rows) + 10 * number})["ids"], found["ids"])
        return found, own.grad

    ends = [0, sizes[0][0], total]
    for number, (found, gradient) in enumerate(on_both(work)):
        assert list(found) == ["words", "mask", "ids"] and found["words"].shape == (total, lengths, 2)
        for other, (rows, length) in enumerate(sizes):
            here = slice(ends[other], ends[other + 1])
            assert torch.equal(found["words"][here, :length], words[other])
            assert not found["words"][here, length:].any()
            assert found["mask"][here].tolist() == [[True] * length + [False] * (lengths - length)] * rows
            assert found["ids"][here].tolist() == [10 * other + row for row in range(rows)]
        assert found["mask"].dtype == torch.bool and found["ids"].dtype == torch.int64
        expected = (factors[0] + factors[1])[ends[number] : ends[number + 1], : sizes[number][1]]
        torch.testing.assert_close(gradient, expected)


def test_two_ranks_have_the_terms_and_the_gradient_of_one(on_both):
    """Three pairs here, four there, two captions of one video on different ranks; TPM's part is each rank's own."""
    spec = importlib.util.spec_from_file_location("two_ranks", Path(__file__).with_name("two_ranks.py"))
    pairs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pairs)
    model = pairs.make_model(pairs.LOSSES["partial_order"] | {"partial_weight": 0.5})
    whole = pairs.make_batch(model.config)
    objectives = [Objective(copy.deepcopy(model)) for _ in range(2)]
    alone = model(**whole)
    alone.loss.backward()

    def work(number):
        rows = rank_share(list(range(pairs.PAIRS)), number, 2)
        terms = objectives[number](**{name: value[rows] for name, value in whole.items()})
        terms["loss"].backward()
        return {name: value.item() for name, value in terms.items()}

    for terms in on_both(work):
        assert terms["loss"] == pytest.approx(alone.loss.item(), rel=1e-9)
        assert terms["contrastive"] == pytest.approx(alone.contrastive_loss.item(), rel=1e-9)
        assert terms["partial_order"] == pytest.approx(alone.partial_order_loss.item(), rel=1e-9)
        assert terms["scale"] == pytest.approx(model.logit_scale.exp().item())
        assert 0 < terms["hard_negative_share"] < 1 and len(terms) == 5
    ranks = zip(*(objective.model.parameters() for objective in objectives), strict=True)
    for parameter, both in zip(model.parameters(), ranks, strict=True):
        torch.testing.assert_close(sum(part.grad for part in both) / 2, parameter.grad, rtol=1e-6, atol=1e-9)


def test_how_far_training_is_reaches_the_model():
    model = torch.nn.Linear(1, 1)
    objective = Objective(model)
    assert model.progress == 0.0 == objective.progress
    objective.progress = 0.25
    assert model.progress == 0.25 == objective.progress
