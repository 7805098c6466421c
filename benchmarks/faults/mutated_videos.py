"""Mutated videos through `dmae index`: no crash, no hang, every good file indexed, every other one indexed or named.

python benchmarks/faults/mutated_videos.py --videos 10000      # resumable: run it again to go on

Clips of sixteen containers and codecs are made here, then bytes of them are flipped, cut, doubled, moved or blown up.
Mutant n depends on the seed and n alone. Each batch of them lies in a folder beside good files and goes through the
real command in a process of its own, with a tiny random model. The result is the key "mutated_videos" of
benchmarks/results/faults.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from dmae import DMAEConfig, DMAEForTextVideoRetrieval, DMAEProcessor, FrameSampler, VideoIndex
from dmae.training.tokenizer import train_bpe_tokenizer

KINDS = {  # name -> (codec, pixel format, further options of the encoder, of the muxer, frames per second)
    "h264.mp4": ("libx264", "yuv420p", {}, {}, 10),
    "fragmented.mp4": ("libx264", "yuv420p", {}, {"movflags": "frag_keyframe+empty_moov"}, 10),
    "h264.mkv": ("libx264", "yuv420p", {}, {}, 10),
    "long.mkv": ("libx264", "yuv420p", {}, {}, 1),  # more than a minute: cut into windows
    "h264.ts": ("libx264", "yuv420p", {}, {}, 25),
    "h264.flv": ("libx264", "yuv420p", {}, {}, 10),
    "h264_10bit.mov": ("libx264", "yuv420p10le", {}, {}, 10),
    "hevc.mp4": ("libx265", "yuv420p", {"x265-params": "log-level=none:keyint=8"}, {}, 10),
    "mpeg4.avi": ("mpeg4", "yuv420p", {}, {}, 10),
    "mpeg2.mpg": ("mpeg2video", "yuv420p", {}, {}, 25),
    "wmv2.wmv": ("wmv2", "yuv420p", {}, {}, 10),
    "mjpeg.mov": ("mjpeg", "yuvj420p", {}, {}, 10),
    "vp8.webm": ("libvpx", "yuv420p", {"deadline": "realtime"}, {}, 10),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}, {}, 10),
    "av1.mp4": ("libsvtav1", "yuv420p", {"preset": "12"}, {}, 10),
    "gif.gif": ("gif", "rgb8", {}, {}, 10),
}
GOOD = ("h264.mp4", "long.mkv", "vp9.webm")  # beside every batch
HANG_SECONDS = 3600  # of wall-clock time, for a batch that takes one minute of work


@contextmanager
def usual_priority() -> Iterator[None]:
    """The AV1 encoder makes the thread that calls it a real-time one, which would starve all others."""
    known = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *known)


@usual_priority()
def write_clip(path: Path, kind: str, frames: int = 24) -> None:
    codec, pixels, options, muxer, rate = KINDS[kind]
    frames = 80 if kind == "long.mkv" else frames
    with av.open(str(path), "w", options=muxer) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        stream.codec_context.gop_size, stream.codec_context.time_base = 8, Fraction(1, rate)
        for number in range(frames):
            image = np.full((48, 64, 3), (7 * number) % 256, np.uint8)
            image[:, (11 * number) % 64 :] = 255 - image[0, 0]
            frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def mutate(data: bytes, random: np.random.Generator) -> bytes:
    """One to three times: flip bytes, overwrite, cut, double or move a piece, truncate, or blow up a length."""
    for _ in range(random.integers(1, 4)):
        start = int(random.integers(len(data)))
        end = start + int(random.integers(1, max(2, len(data) // 8)))
        kind = random.choice(["flip", "flip", "head", "noise", "cut", "double", "move", "truncate", "length"])
        if kind in ("flip", "head"):
            changed, limit = bytearray(data), len(data) if kind == "flip" else min(len(data), 1024)
            for place in random.integers(0, limit, random.integers(1, 20)):
                changed[place] = random.integers(256)
            data = bytes(changed)
        elif kind == "length":
            data = (
                data[:start]
                + bytes.fromhex(str(random.choice(["ffffffff", "7fffffff", "00000000"])))
                + data[start + 4 :]
            )
        else:
            piece = {
                "noise": random.bytes(min(end, len(data)) - start),
                "cut": b"",
                "double": 2 * data[start:end],
                "move": b"",
                "truncate": b"",
            }[str(kind)]
            moved = data[start:end] if kind == "move" else b""
            data = moved + data[:start] + piece + (b"" if kind == "truncate" else data[end:])
        data = data or b"\0"
    return data


def save_model(folder: Path) -> Path:
    """A random model of the true format, small enough for the decoding to be what takes the time."""
    torch.manual_seed(0)
    tokenizer = train_bpe_tokenizer(["a grey bar moves to the right over a plain background"] * 4, vocab_size=300)
    config = DMAEConfig.tiny()
    config.text_config.vocab_size = len(tokenizer)
    sampler = FrameSampler(num_frames=4, size=config.vision_config.image_size, max_cpu_seconds=20)
    DMAEForTextVideoRetrieval(config).save_pretrained(folder)
    DMAEProcessor(tokenizer, sampler, max_words=config.max_words).save_pretrained(folder)
    return folder


def run_batch(numbers: range, seed: int, seeds: dict[str, bytes], model: Path, folder: Path) -> dict:
    """Index the mutants of these numbers beside the good files; what happened, counted."""
    shutil.rmtree(folder, ignore_errors=True)
    videos = folder / "videos"
    videos.mkdir(parents=True)
    for kind in GOOD:
        (videos / f"good_{kind}").write_bytes(seeds[kind])
    for number in numbers:
        kind = list(seeds)[number % len(seeds)]
        data = mutate(seeds[kind], np.random.default_rng([seed, number]))
        (videos / f"{number:06d}_{kind}").write_bytes(data)
    command = [sys.executable, "-m", "dmae", "index", str(videos), "-o", str(folder / "index")]
    command += ["--model", str(model), "--num-workers", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    outcome = Counter(videos=len(numbers), crashes=0, hangs=0, good_lost=0, unaccounted=0)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=HANG_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        outcome["hangs"] += 1
        return outcome
    if done.returncode or b"Traceback" in done.stderr:
        outcome["crashes"] += 1
        print(done.stderr.decode(errors="replace")[-2000:], file=sys.stderr)
        return outcome
    rows = VideoIndex.open(folder / "index").rows()
    places = [row["path"] for row in rows] + [copy["path"] for row in rows for copy in row.get("copies", ())]
    indexed = {Path(path).name for path in places}
    lines = (folder / "index" / "skipped.jsonl").read_text(encoding="utf-8").split("\n")
    skipped = [json.loads(line) for line in lines if line]
    named = {Path(entry["path"]).name for entry in skipped}
    present = {path.name for path in videos.iterdir()}
    outcome["good_lost"] = sum(f"good_{kind}" not in indexed for kind in GOOD)
    outcome["unaccounted"] = len(present - indexed - named)
    outcome["indexed"] = len(indexed) - len(GOOD) + outcome["good_lost"]
    outcome["skipped"] = len(named - indexed)
    outcome["worker_deaths"] = sum("ended the process" in entry["error"] for entry in skipped)
    return outcome


def run(videos: int, seed: int, batch: int, work: Path) -> dict:
    """All batches, those that `work` remembers not again; -> the counts summed."""
    work.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        if not (work / kind).exists():
            write_clip(work / kind, kind)
    seeds = {kind: (work / kind).read_bytes() for kind in KINDS}
    model = work / "model" if (work / "model" / "config.json").exists() else save_model(work / "model")
    log, total = work / f"batches_{seed}_{batch}.jsonl", Counter()
    done = log.read_text().split("\n")[:-1] if log.exists() else []
    for place, start in enumerate(range(0, videos, batch)):
        if place < len(done):
            total.update(json.loads(done[place]))
            continue
        outcome = run_batch(range(start, min(start + batch, videos)), seed, seeds, model, work / "batch")
        with log.open("a") as stream:
            stream.write(json.dumps(outcome) + "\n")
        total.update(outcome)
        print(f"{total['videos']} of {videos}: {dict(total)}", flush=True)
    return dict(total) | {"kinds": list(KINDS), "batch": batch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=200, help="how many mutants (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=500, help="mutants per run of the command")
    parser.add_argument("--work", type=Path, default=Path("outputs/faults/mutated_videos"))
    arguments = parser.parse_args()
    result = run(arguments.videos, arguments.seed, arguments.batch, arguments.work)
    from report import merge_result

    merge_result("mutated_videos", result, seed=arguments.seed, trials=arguments.videos)
    bad = {name: result[name] for name in ("crashes", "hangs", "good_lost", "unaccounted") if result[name]}
    sys.exit(f"found: {bad}" if bad else 0)


if __name__ == "__main__":
    main()
