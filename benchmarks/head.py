"""What the head (similarity, NegNCE, TPM-CL) costs, in one run, against dense products and against the plain ways.

    python benchmarks/head.py [--device cuda] [--batch 128] [--words 32 | --captions] [--repeats 3]

Columns: forward + backward seconds, the ratio to (a), and the growth of memory while it runs (on the CPU a lower bound:
of the process's resident set, where memory that an earlier row freed is used again).
(a) the dense matrix products of the similarity and of its two gradients, nothing else.
(b) the same similarity and NegNCE by autograd with the (B,B,T,F) tensor in memory.
(c) ours with TPM-CL over all B² pairs of a text and a video, as the authors' code does, instead of the B matched ones.
The temporal encoder is the backbone's, not the head's: TPM-CL is given its masked video features.
`--captions` draws caption lengths of 5 to 20 words out of T, as captions have them, instead of T words in each.
On the CPU, times are CPU time of one thread (other work on the machine would enter wall-clock), on CUDA wall-clock.
Needs torch and transformers only.
"""

import argparse
import json
import os
import platform
import threading
import time
from pathlib import Path
from unittest import mock

import torch

from dmae.modeling_dmae import fused_dmae
from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.embeddings_dmae import PairTokens, TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.losses_dmae import neg_nce
from dmae.modeling_dmae.partial_order_dmae import PartialOrder
from dmae.modeling_dmae.similarity_dmae import similarity
from dmae.modeling_dmae.vectors_dmae import uniform_weights, unit

SCALE = 100.0
CONFIG = DMAEConfig(text_granularity="words")


def make_batch(size: int, words: int, frames: int, width: int, captions: bool, device: str):
    torch.manual_seed(0)
    lengths = torch.randint(5, 21, (size, 1)).clamp(max=words) if captions else torch.full((size, 1), words)
    word_mask = (torch.arange(words) < lengths).to(device)
    video_mask = torch.ones(size, frames, dtype=torch.bool, device=device)
    leaves = [unit(torch.randn(size, n, width)).to(device).requires_grad_() for n in (words, frames)]
    sentence = unit(torch.randn(size, width)).to(device)
    text = TextEmbeddings(sentence, leaves[0], uniform_weights(word_mask), word_mask)
    return text, VideoEmbeddings(leaves[1], leaves[1], uniform_weights(video_mask), video_mask)


def dense_products(text, video):
    words, frames = text.word_embeds.detach().flatten(0, 1), video.video_embeds.detach().flatten(0, 1)
    product = words @ frames.T
    return product @ frames, product.T @ words


def materialised(text, video):
    product = torch.einsum("atd,bfd->abtf", text.word_embeds, video.attended_embeds)
    by_word = product.masked_fill(~video.video_mask[None, :, None], -torch.inf).amax(-1)
    by_frame = product.masked_fill(~text.word_mask[:, None, :, None], -torch.inf).amax(2)
    scores = torch.einsum("at,abt->ab", text.word_weights, by_word)
    neg_nce((scores + torch.einsum("bf,abf->ab", video.frame_weights, by_frame)) / 2, SCALE).backward()


def objective(text, video, head=None, pairs=lambda *matched: matched):
    loss = neg_nce(similarity(text, video, CONFIG), SCALE)
    if head is not None:
        loss = loss + head(*pairs(text, video))
    loss.backward()


class Head(PartialOrder, torch.nn.Module):
    """TPM-CL as the model has it, of B matched pairs; masked frames enter as they are, without the temporal encoder."""

    def __init__(self, words: int, frames: int, width: int):
        super().__init__()
        self.config = DMAEConfig(max_words=words, max_frames=frames, projection_dim=width)
        self.progress = None
        self.add_predictors(self.config)

    def forward(self, text, video):
        words = torch.where(text.word_mask[..., None], text.word_embeds, 0.0)
        frames, mask = video.video_embeds, video.video_mask
        positions = torch.arange(frames.shape[1], device=frames.device).expand(mask.shape)
        self._temporal = lambda masked, *other: (masked, video.frame_weights)
        tokens = PairTokens(words, text.word_mask, frames, frames, mask, positions)
        return self.partial_order_terms(text, video, tokens)[0].mean(1).sum()


def with_kernel_from(pairs: float, batch):
    """The objective, with the Triton kernel for so many pairs of texts with videos and more."""
    with mock.patch.object(fused_dmae, "FUSED_FROM", pairs):
        return objective(*batch)


def all_pairs(text, video):
    """Every text with every video, B² of each: what the released code gives to its token weight predictors."""
    each = torch.arange(len(text.word_mask), device=text.word_mask.device)
    texts, videos = each.repeat_interleave(len(each)), each.repeat(len(each))
    return text[texts], video[videos]


class Peak:
    """Peak memory above the start: the allocator's on CUDA, the process's resident set, sampled, on the CPU."""

    def __init__(self, device: str):
        self.device, self.most = device, 0

    def resident(self) -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def __enter__(self):
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            self.start, self.running = self.resident(), True
            self.thread = threading.Thread(target=self.watch)
            self.thread.start()
        return self

    def watch(self):
        while self.running:
            self.most = max(self.most, self.resident() - self.start)
            time.sleep(0.001)

    def __exit__(self, *error):
        if self.device == "cuda":
            self.most = torch.cuda.max_memory_allocated() - self.start
        else:
            self.running = False
            self.thread.join()


def seconds(run, device: str, repeats: int) -> float:
    clock = time.perf_counter if device == "cuda" else time.process_time
    best = float("inf")
    for _ in range(repeats + 1):  # the first is a warm-up unless it is the best
        start = clock()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return best


def measure(options) -> list[dict]:
    batch = make_batch(options.batch, options.words, options.frames, options.width, options.captions, options.device)
    head = Head(options.words, options.frames, options.width).to(options.device)
    rows = {
        "(a) dense products": lambda: dense_products(*batch),
        "similarity + NegNCE": lambda: objective(*batch),
        "similarity + NegNCE + TPM": lambda: objective(*batch, head),
        "(b) materialised autograd": lambda: materialised(*batch),
    }
    if options.device == "cuda" and fused_dmae.triton is not None:
        # whatever the batch, so that where the kernel pays can be read off
        rows["similarity + NegNCE, fused"] = lambda: with_kernel_from(0, batch)
        rows["similarity + NegNCE, not fused"] = lambda: with_kernel_from(float("inf"), batch)
    if options.batch <= options.all_pairs_up_to:
        rows["(c) TPM over all pairs"] = lambda: objective(*batch, head, all_pairs)
    results = []
    for name, run in rows.items():
        with Peak(options.device) as peak:
            run()
        results.append({"row": name, "seconds": seconds(run, options.device, options.repeats), "peak": peak.most})
        results[-1]["ratio"] = results[-1]["seconds"] / results[0]["seconds"]
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, nargs="+", default=[128])
    parser.add_argument("--words", type=int, default=32)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--captions", action="store_true", help="caption lengths of 5 to 20 words")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--all-pairs-up-to", type=int, default=32, help="largest batch for (c), which needs B² memory")
    parser.add_argument("--output", type=Path, help="add the table to this JSON file")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    tables = json.loads(options.output.read_text()) if options.output and options.output.exists() else []
    for size in options.batch:
        one = argparse.Namespace(**{**vars(options), "batch": size})
        shape = dict(batch=size, words=one.words, frames=one.frames, width=one.width, captions=one.captions)
        clock = "wall-clock" if one.device == "cuda" else "CPU time, 1 thread"
        conditions = dict(shape, device=device, torch=torch.__version__, clock=clock, repeats=one.repeats)
        conditions["load_average"] = round(os.getloadavg()[0], 1)  # a busy machine shares its caches
        print(", ".join(f"{name}={value}" for name, value in conditions.items()))
        results = measure(one)
        for row in results:
            print(f"  {row['row']:28}{row['seconds']:9.3f} s {row['ratio']:7.2f}x {row['peak'] / 2**20:9.0f} MiB")
        tables.append({"conditions": conditions, "rows": results})
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
