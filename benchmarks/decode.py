r"""How fast, and how exactly, 12 frames come out of a 30-s clip: FrameSampler's reader against four other ways.

    python benchmarks/decode.py --folder /tmp/decode_clips        # writes benchmarks/results/decode_cpu.json
    python benchmarks/decode.py --folder … --methods gop_skip torchcodec_exact torchcodec_approximate \
        --output benchmarks/results/decode_torchcodec.json        # where torchcodec loads (test_inputs.py)

Every method decodes on one thread and hands over the same thing, RGB uint8 frames at one per second thinned to 12, in
turn and `--repeats` times over; the figure is the median CPU time of a clip (wall time beside it), so that a busy
machine does not decide. "Off" counts frames that are not the one shown at their time. The clips are made here with x264
(veryfast, B-frames) and kept in the folder.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "threads;1")

import av
import numpy as np
import torch
import transformers
from decode_clips import (
    FRAMES,
    RATE,
    SECONDS,
    chosen_times,
    make_clip,
    make_coded_clip,
    number_of,
    off_frames,
    rgb,
)

from dmae.processing.decoding_dmae import VideoReader
from dmae.processing.frames_dmae import FrameSampler, choose_frames, resize_and_crop

try:
    import cv2
except ImportError:
    cv2 = None
try:
    import torchcodec.decoders as torchcodec
except (ImportError, OSError, RuntimeError) as error:
    first_line = str(error).splitlines()[0]
    torchcodec, TORCHCODEC_PROBLEM = None, f"{type(error).__name__}: {re.sub(r'/[^ ]*/', '', first_line)}"

ONLY: list[str] | None = None  # the methods of --methods
CLIPS = [("240p", 426, 240, 30), ("240p", 426, 240, 250), ("720p", 1280, 720, 30), ("720p", 1280, 720, 250)]


def torchcodec_version() -> str:
    return importlib.metadata.version("torchcodec")


def gop_skip(path: Path) -> list[np.ndarray]:
    with VideoReader(path) as reader:
        return reader.read(lambda times: choose_frames(times, FRAMES), rgb)[0]


def sequential(path: Path) -> list[np.ndarray]:
    """Decode every frame up to the last one needed, keep the chosen."""
    wanted = {round(second * RATE) for second in chosen_times()}
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type = "NONE"
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                frames.append(rgb(frame))
                if len(frames) == len(wanted):
                    break
    return frames


def seek_per_frame(path: Path) -> list[np.ndarray]:
    """For each frame, seek to the key frame before it and decode up to it."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type = "NONE"
        for second in chosen_times():
            container.seek(int(second / stream.time_base), stream=stream)
            frames.append(rgb(next(frame for frame in container.decode(stream) if frame.time > second - 0.5 / RATE)))
    return frames


def opencv(path: Path) -> list[np.ndarray]:
    """CLIP4Clip's extractor: set the position to each second and read, then thin the frames to 12."""
    capture = cv2.VideoCapture(str(path))
    rate = capture.get(cv2.CAP_PROP_FPS)
    frames = []
    for second in range(int(capture.get(cv2.CAP_PROP_FRAME_COUNT) / rate)):
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(second * rate))
        read, frame = capture.read()
        if read:
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    capture.release()
    return [frames[number] for number in np.linspace(0, len(frames) - 1, FRAMES).astype(int)]


def by_torchcodec(path: Path, seek_mode: str = "exact", seconds: np.ndarray | None = None) -> list[np.ndarray]:
    decoder = torchcodec.VideoDecoder(str(path), num_ffmpeg_threads=1, seek_mode=seek_mode, dimension_order="NHWC")
    seconds = chosen_times() if seconds is None else seconds
    return list(decoder.get_frames_played_at(seconds.tolist()).data.numpy())


def methods() -> dict:
    found = {"gop_skip": gop_skip, "sequential": sequential, "seek_per_frame": seek_per_frame}
    found |= {"opencv": opencv} if cv2 else {}
    if torchcodec:
        found |= {f"torchcodec_{mode}": partial(by_torchcodec, seek_mode=mode) for mode in ("exact", "approximate")}
    return {name: function for name, function in found.items() if ONLY is None or name in ONLY}


def exactness(folder: Path) -> dict:
    """Frames that are not the one shown at their second, in files that are not cut to one rate from 0 on."""
    steady, phone = np.arange(SECONDS * RATE) / RATE, np.random.default_rng(0).uniform(1 / 60, 1 / 20, SECONDS * RATE)
    clips = {
        "29.97 frames/s": steady * 1.001,
        "variable rate, 20 to 60 frames/s": phone.cumsum(),
        "15 frames/s for 10 s, then 30": np.concatenate([steady[:300:2], steady[300:]]),
        "first 1.7 s cut by an edit list": steady - 1.7,
    }
    results = {}
    for title, times in clips.items():
        path = folder / f"{title.replace(' ', '_').replace('/', '_')}.mp4"
        make_coded_clip(path, times)
        with av.open(str(path)) as container:
            shown = [(frame.time, number_of(rgb(frame))) for frame in container.decode(video=0)]
        seconds, numbers = (np.array(column) for column in zip(*shown))
        wanted = numbers[choose_frames(seconds, FRAMES)]
        at = dict(zip(numbers.tolist(), seconds.tolist()))
        results[title] = {}
        for name, function in methods().items():
            if name in ("gop_skip", "opencv") or name.startswith("torchcodec"):
                # it is asked for the very times of the true frames, half a frame late: it chooses none itself
                when = {"seconds": np.array([at[number] for number in wanted.tolist()]) + 1 / 240}
                try:
                    frames = function(path, **(when if name.startswith("torchcodec") else {}))
                except Exception as error:
                    results[title][name] = {"refused": f"{type(error).__name__}: {error}"[:200].splitlines()[0]}
                    continue
                found = [number_of(frame) for frame in frames]
                gaps = [abs(at.get(number, np.inf) - at[true]) for number, true in zip(found, wanted.tolist())]
                off = sum(gap > 0 for gap in gaps)
                results[title][name] = {"off": f"{off} of {len(wanted)}", "largest_gap_seconds": round(max(gaps), 2)}
        print(title, results[title], flush=True)
    return results


def timed(run, repeats: int) -> dict[str, float]:
    """Medians in milliseconds of what each named function takes, in turn, after one unmeasured turn."""
    cpu, wall = {name: [] for name in run}, {name: [] for name in run}
    for turn in range(repeats + 1):
        for name, function in run.items():
            start = time.process_time(), time.perf_counter()
            function()
            if turn:
                cpu[name].append((time.process_time() - start[0]) * 1e3)
                wall[name].append((time.perf_counter() - start[1]) * 1e3)
    return {
        name: {"cpu_ms": round(statistics.median(cpu[name]), 1), "wall_ms": round(statistics.median(wall[name]), 1)}
        for name in run
    }


def decoding(folder: Path, repeats: int, sizes: list[str]) -> dict:
    results = {}
    for name, width, height, gop in (clip for clip in CLIPS if clip[0] in sizes):
        path = folder / f"{name}_{gop}.mp4"
        if not path.exists():
            make_clip(path, width, height, gop)
        rows = timed({key: partial(function, path) for key, function in methods().items()}, repeats)
        for key, function in methods().items():
            rows[key]["times_gop_skip"] = round(rows[key]["cpu_ms"] / rows["gop_skip"]["cpu_ms"], 2)
            rows[key]["off"] = f"{off_frames(path, function(path))} of {FRAMES}"
        results[f"{name} gop {gop}"] = rows
        print(f"{name} gop {gop}", *(f"  {key:15s}{row}" for key, row in rows.items()), sep="\n", flush=True)
    return results


def preprocessing(repeats: int) -> dict:
    """12 RGB frames of 720p -> normalised 224 x 224."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    frames = list(np.random.default_rng(0).integers(0, 256, (FRAMES, 720, 1280, 3), np.uint8))
    sampler, pil = FrameSampler(), CLIPImageProcessorPil()

    def ours():
        resized = [resize_and_crop(torch.from_numpy(frame).permute(2, 0, 1), 224) for frame in frames]
        return sampler.normalize(torch.stack(resized))

    difference = (ours() - pil(frames, return_tensors="pt").pixel_values).abs().max() * 255 * max(sampler.image_std)
    rows = timed({"frame_sampler": ours, "transformers_pil": lambda: pil(frames, return_tensors="pt")}, repeats)
    rows["largest_difference_in_levels_of_255"] = round(difference.item(), 2)
    print("preprocessing", rows, flush=True)
    return rows


class Clips(torch.utils.data.Dataset):
    def __init__(self, path: Path, count: int):
        self.sampler, self.path, self.count = FrameSampler(), path, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.sampler(self.path).pixel_values


def loading(path: Path, count: int = 24) -> dict:
    """Clips per second through a DataLoader, wall time, the workers' start included for none."""
    rows = {}
    for workers in (0, 1, 2):
        loader = torch.utils.data.DataLoader(Clips(path, count), batch_size=4, num_workers=workers)
        batches = iter(loader)
        next(batches)
        start = time.perf_counter()
        rest = sum(len(batch) for batch in batches)
        rows[f"{workers} workers"] = round(rest / (time.perf_counter() - start), 1)
    print("loader, clips per second", rows, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the clips are kept")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", default=["240p", "720p"], choices=["240p", "720p"])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "decode_cpu.json")
    parser.add_argument("--methods", nargs="+", help="only these; decoding and exactness alone are then measured")
    arguments = parser.parse_args()
    global ONLY
    ONLY = arguments.methods
    torch.set_num_threads(1)
    if cv2:
        cv2.setNumThreads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    conditions = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 1),
        "threads": 1,
        "repeats": arguments.repeats,
        "av": av.__version__,
        "opencv": cv2.__version__ if cv2 else None,
        "torchcodec": torchcodec_version() if torchcodec else TORCHCODEC_PROBLEM,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "clips": f"{SECONDS} s at {RATE} frames/s, x264 veryfast with B-frames, {FRAMES} frames out, RGB",
    }
    results = {
        "conditions": conditions,
        "decode": decoding(arguments.folder, arguments.repeats, arguments.sizes),
        "exactness": exactness(arguments.folder),
    }
    if not ONLY:
        clip = arguments.folder / f"{arguments.sizes[0]}_30.mp4"
        results["preprocess_12_frames_720p"] = preprocessing(arguments.repeats)
        results[f"loader_clips_per_second_{arguments.sizes[0]}_gop_30"] = loading(clip)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
