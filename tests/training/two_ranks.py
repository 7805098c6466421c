"""Run by test_distributed.py under `accelerate launch` with two processes.

Prints how far the gradients of two ranks are from those of one process that holds the whole batch, for every loss.
"""

import copy
import json

import torch
from accelerate import Accelerator

from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval
from dmae.training.gradient_cache import cached_backward
from dmae.training.objective import Objective
from dmae.training.sampler import rank_share

LOSSES = {
    "info_nce": dict(loss="info_nce", partial_order=False),
    "neg_nce": dict(loss="neg_nce", partial_order=False),
    "neg_nce_without_duplicates": dict(loss="neg_nce", partial_order=False, mask_duplicates=False),
    "partial_order": dict(loss="neg_nce", partial_order=True),
    "partial_order_patch_wti": dict(partial_order=True, temporal_input="patch", interaction="wti"),
    "pooled_mask_gradient_none": dict(similarity_form="pooled", mask_gradient="none", partial_order=True),
    "mean": dict(interaction="mean", loss="info_nce", partial_order=False),
}
PAIRS = 7  # rank 0 gets 3, rank 1 gets 4


def make_batch(config, seed: int = 0) -> dict[str, torch.Tensor]:
    """Seven pairs: a video and a caption on both ranks, short texts and videos, one pair of a single word."""
    torch.manual_seed(seed)
    words, frames = config.max_words, config.max_frames
    lengths = torch.tensor([1, 5, 3, 9, 4, 6, 2])
    position = torch.arange(words)
    word_mask = (position >= 1) & (position <= lengths[:, None])
    ids = torch.randint(2, config.text_config.vocab_size, (PAIRS, words))
    ids[:, 0] = config.text_config.bos_token_id
    ids[torch.arange(PAIRS), lengths + 1] = config.text_config.eos_token_id
    counts = torch.tensor([2, 4, 1, 3, 2, 1, 4]).clamp(max=frames)
    side = config.vision_config.image_size
    return {
        "input_ids": ids,
        "attention_mask": (position <= lengths[:, None] + 1).long(),
        "word_mask": word_mask,
        "word_weights": torch.randint(0, 3, (PAIRS, words)).float() * word_mask,
        "pixel_values": torch.randn(PAIRS, frames, 3, side, side, dtype=torch.float64),
        "video_mask": torch.arange(frames) < counts[:, None],
        "video_ids": torch.tensor([1, 2, 3, 4, 2, 5, 6]),
        "caption_ids": torch.tensor([10, 11, 12, 13, 14, 10, 15]),
    }


def make_model(words: dict):
    torch.manual_seed(1)
    # a high scale and random temporal layers: hard negatives exist and every path has a gradient
    config = DMAEConfig.tiny(temporal_init="random", logit_scale_init_value=3.0, initializer_range=0.1, **words)
    # float64, so that what is left of a difference is a mistake and not the order of a sum
    return DMAEForTextVideoRetrieval(config).double().train()


def worst_difference(model, reference) -> float:
    """max |g − g_ref| / max |g_ref|, over all parameters; both or neither must have a gradient."""
    pairs = [(p.grad, r.grad) for p, r in zip(model.parameters(), reference.parameters())]
    assert all((a is None) == (b is None) for a, b in pairs)
    pairs = [(a, b) for a, b in pairs if a is not None]
    return max((a - b).abs().max() for a, b in pairs).item() / max(b.abs().max() for _, b in pairs).item()


def compare(accelerator: Accelerator, words: dict, chunk: int | None = None, trim: bool = False) -> float:
    """The larger of the differences in loss and in gradient to the model's own forward on the whole batch."""
    model = make_model(words)
    reference = copy.deepcopy(model)
    whole = make_batch(model.config)
    reference(**whole).loss.backward()
    rank, world = accelerator.process_index, accelerator.num_processes
    rows = rank_share(list(range(PAIRS)), rank, world)
    own = {name: value[rows] for name, value in whole.items()}
    if trim:  # ranks whose texts and videos have different lengths
        words_used, frames_used = int(own["attention_mask"].sum(1).max()), int(own["video_mask"].sum(1).max())
        for name in ("input_ids", "attention_mask", "word_mask", "word_weights"):
            own[name] = own[name][:, :words_used]
        for name in ("pixel_values", "video_mask"):
            own[name] = own[name][:, :frames_used]
    objective = accelerator.prepare_model(Objective(model))
    if chunk is None:
        terms = objective(**own)
        accelerator.backward(terms["loss"])
    else:
        terms = cached_backward(accelerator, objective, own, chunk)
    value = abs(terms["loss"].item() - reference(**whole).loss.item())
    return max(value, worst_difference(model, reference))


def main() -> None:
    accelerator = Accelerator(cpu=True)
    results = {"num_processes": accelerator.num_processes, "gradients": {}}
    for name, words in LOSSES.items():
        results["gradients"][name] = compare(accelerator, words)
    for name in ("neg_nce", "partial_order_patch_wti"):
        results["gradients"][f"{name}_cached"] = compare(accelerator, LOSSES[name], chunk=2)
    for name in ("neg_nce", "mean"):
        results["gradients"][f"{name}_trimmed"] = compare(accelerator, LOSSES[name], trim=True)
    if accelerator.is_main_process:
        print("RESULT " + json.dumps(results))


if __name__ == "__main__":
    main()
