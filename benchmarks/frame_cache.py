"""What the frame cache saves: time to get a clip's frames by decoding and from the cache, and the bytes it costs.

    python benchmarks/frame_cache.py                     # on generated 240p clips of 10-30 s, H.264, x264's defaults
    python benchmarks/frame_cache.py --videos FOLDER     # on your own

One process, one thread, files in the page cache; CPU time of the process, per clip the best of `--repeats` readings, so
that other load on the machine counts little. Results go to benchmarks/results/frame_cache.json. How well pictures
compress depends on what they show: the generated clips are drifting textures with film grain.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch

from dmae.data.frame_cache.builder import build_frame_cache
from dmae.data.frame_cache.codec import CODECS
from dmae.data.frame_cache.store import FrameCache, key_of
from dmae.data.videos import VIDEO_EXTENSIONS
from dmae.processing.frames_dmae import FrameSampler

RESULTS = Path(__file__).parent / "results" / "frame_cache.json"
WIDTH, HEIGHT, FPS = 426, 240, 25
SECONDS = (10, 12, 15, 20, 25, 30)


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A picture with detail at every scale, as photographs have: (height, width, 3) float in 0-255."""
    image = np.zeros((height, width, 3))
    for cells in (4, 16, 64):
        grid = torch.from_numpy(rng.random((1, 3, cells, cells)))
        smooth = torch.nn.functional.interpolate(grid, (height, width), mode="bicubic")[0]
        image += smooth.permute(1, 2, 0).numpy() * 255 * (4 / cells) ** 0.5
    return np.clip(image / 1.75, 0, 255)


def write_clip(path: Path, seconds: float, seed: int) -> None:
    """A window drifts over a large texture, another texture moves across it, grain on top."""
    rng = np.random.default_rng(seed)
    world, thing = texture(rng, 2 * HEIGHT, 2 * WIDTH), texture(rng, 80, 80)
    total = int(seconds * FPS)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for step in range(total):
            part = step / total
            y, x = int(HEIGHT * part), int(WIDTH * (0.5 + 0.5 * np.sin(6.28 * part)))
            frame = world[y : y + HEIGHT, x : x + WIDTH].copy()
            left, top = int((WIDTH - 80) * part), int((HEIGHT - 80) * (1 - part))
            frame[top : top + 80, left : left + 80] = thing
            frame += rng.normal(0, 4, (HEIGHT, WIDTH, 1))
            image = np.clip(frame, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def best_of(repeats: int, function) -> float:
    """CPU seconds of the fastest of `repeats` calls."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return min(times)


def measure(rows: list[dict], sampler: FrameSampler, codec: str, folder: Path, repeats: int) -> dict:
    """Decode and cached reading of the same clips, in one run."""
    started = time.process_time()
    report = build_frame_cache(rows, folder, sampler, codec, workers=0)
    build = time.process_time() - started
    if report.unreadable:
        raise ValueError(f"{report.unreadable[0]['video']} cannot be decoded: {report.unreadable[0]['reason']}")
    cache = FrameCache(folder, sampler)
    decode, cached, errors, frames = [], [], [], 0
    for row in rows:
        decode.append(best_of(repeats, lambda row=row: sampler.decode(row["video"])))
        cached.append(best_of(repeats, lambda row=row: cache.frames(key_of(row))))
        true, stored = sampler.decode(row["video"]).frames, cache.frames(key_of(row)).frames
        errors.append((true.float() - stored.float()).abs().mean().item())
        frames += len(true)
    size = sum(path.stat().st_size for path in folder.glob("*.arrow"))
    return {
        "codec": codec,
        "decode_ms_per_clip": round(1e3 * float(np.mean(decode)), 2),
        "cached_ms_per_clip": round(1e3 * float(np.mean(cached)), 2),
        "speed_up": round(sum(decode) / sum(cached), 1),
        "build_ms_per_clip": round(1e3 * build / len(rows), 1),
        "kB_per_clip": round(size / len(rows) / 1e3, 1),
        "kB_per_frame": round(size / frames / 1e3, 1),
        "video_kB_per_clip": round(sum(os.path.getsize(row["video"]) for row in rows) / len(rows) / 1e3, 1),
        "mean_abs_error_of_255": round(float(np.mean(errors)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="folder of clips to measure instead of generated ones")
    parser.add_argument("--num-frames", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        videos = arguments.videos
        if videos is None:
            videos = Path(folder) / "videos"
            videos.mkdir()
            for seed, seconds in enumerate(SECONDS):
                write_clip(videos / f"clip_{seed}.mp4", seconds, seed)
        files = sorted(path for path in videos.iterdir() if path.suffix.lower() in VIDEO_EXTENSIONS)
        rows = [{"video_id": path.name, "video": str(path), "start": None, "end": None} for path in files]
        sampler = FrameSampler(num_frames=arguments.num_frames)
        results = [measure(rows, sampler, codec, Path(folder) / codec, arguments.repeats) for codec in CODECS]
    conditions = {
        "clips": len(rows),
        "content": "generated, 426x240, 25 fps, 10-30 s, H.264" if arguments.videos is None else "given folder",
        "frames_per_clip": arguments.num_frames,
        "size": sampler.size,
        "threads": 1,
        "clock": "CPU time",
        "repeats": arguments.repeats,
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "av": av.__version__,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"conditions": conditions, "results": results}, indent=2) + "\n")
    for row in (conditions, *results):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
