"""The Triton kernel, run by Triton's interpreter on the CPU, gives the plain path's values and gradients."""

import json
import os
import subprocess
import sys

import pytest
import torch

from dmae.modeling_dmae import fused_dmae
from dmae.modeling_dmae.interaction_dmae import DEFAULT_CHUNK_BYTES, MaxInteraction

NAMES = ("scores", "words", "frames", "word_weights", "frame_weights")


def batch(texts: int, videos: int, length: int, number: int, width: int, device: str = "cpu"):
    """Texts of 1 to `length` words, videos of 1 to `number` frames, garbage where masked; ties among the products."""
    torch.manual_seed(texts + number)
    words, frames = torch.randn(texts, length, width), torch.randn(videos, number, width)
    words[:, -1], frames[:, -1] = words[:, 0], frames[:, 0]
    word_mask = torch.arange(length) < torch.randint(1, length + 1, (texts, 1))
    video_mask = torch.arange(number) < torch.randint(1, number + 1, (videos, 1))
    word_mask[0], video_mask[0] = True, True
    weights = [mask * torch.rand(mask.shape) for mask in (word_mask, video_mask)]
    tensors = [words, frames, *(weight / weight.sum(1, keepdim=True) for weight in weights)]
    frames[~video_mask] = 0.0  # as `token_interaction` hands them over
    return [tensor.to(device).requires_grad_() for tensor in tensors], [word_mask.to(device), video_mask.to(device)]


def results(function, tensors, *others) -> dict[str, torch.Tensor]:
    scores = function(*tensors, *others)
    torch.manual_seed(1)
    gradients = torch.autograd.grad(scores, tensors, torch.randn(scores.shape).to(scores.device))
    return dict(zip(NAMES, (scores.detach(), *gradients)))


def differences(*sizes: int, device: str = "cpu") -> dict[str, float]:
    tensors, masks = batch(*sizes, device)
    plain = results(MaxInteraction.apply, tensors, *masks, DEFAULT_CHUNK_BYTES)
    fused = results(fused_dmae.FusedInteraction.apply, tensors, *masks)
    return {name: float((fused[name] - plain[name]).abs().max()) for name in NAMES}


def test_where_the_kernel_cannot_run_or_does_not_pay_it_is_not_chosen():
    (words, frames, *_), _ = batch(2, 3, 4, 5, 8)
    assert not fused_dmae.fused_pays(words, frames)


SIZES = [(3, 6, 7, 5, 40), (2, 5, 16, 12, 64), (5, 1, 33, 17, 16)]


@pytest.mark.parametrize("sizes", SIZES)
def test_the_kernel_is_the_plain_path(sizes):
    """In a process of its own: Triton reads its environment when it is imported."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *map(str, sizes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found.keys() == set(NAMES) and max(found.values()) < 5e-6, found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("sizes", [*SIZES, (70, 90, 32, 12, 512)])
def test_the_compiled_kernel_is_the_plain_path(sizes):
    pytest.importorskip("triton")
    found = differences(*sizes, device="cuda")
    assert max(found.values()) < 1e-4, found
    tensors, masks = batch(*sizes, "cuda")
    one, again = (results(fused_dmae.FusedInteraction.apply, tensors, *masks) for _ in range(2))
    assert all(torch.equal(one[name], again[name]) for name in NAMES)


if __name__ == "__main__":
    print(json.dumps(differences(*map(int, sys.argv[1:]))))
