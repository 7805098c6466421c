"""Miniature datasets in the true file formats: a few generated clips each, to try a recipe or `dmae prepare` on.

    python -m dmae.data.miniature msrvtt-9k outputs/msrvtt-9k

writes `annotations/` and `videos/` below the folder, named, nested and encoded as the real dataset is, with its quirks:
ids without their extension, an upload's extension that is not the one on disk, several captions or sentences per video.
Every clip shows a coloured square that moves, and its captions say so. The same arguments give the same files.
"""

import csv
import json
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dmae.data.loaders.shards import write_shards
from dmae.data.registry import DATASETS, available_splits, canonical_name, load_dataset

SHARD_BYTES = 12_000
SIZES = {"train": 12, "validation": 4, "test": 6}
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 190, 70),
    "blue": (50, 90, 230),
    "yellow": (240, 220, 60),
    "white": (240, 240, 240),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
FPS = 8


class Miniature(NamedTuple):
    """What `load_dataset(name, annotations, videos, split)` takes."""

    name: str
    annotations: Path
    videos: Path


class Scene(NamedTuple):
    """What one clip shows."""

    colour: str
    direction: str

    def captions(self) -> list[str]:
        """Three ways to say it."""
        return [
            f"a {self.colour} square moves {self.direction}",
            f"the {self.colour} box is moving {self.direction} on a dark screen",
            f"someone slides a small {self.colour} square {self.direction}",
        ]


def make_miniature(
    name: str, folder: str | Path, sizes: dict[str, int] | None = None, seconds: float = 2.0
) -> Miniature:
    """Write the miniature of a registered dataset into `folder`, which must not exist or be empty.

    sizes: clips per split (default 12 / 4 / 6). seconds: length of each clip (64x48 pixels, 8 frames per second).
    """
    name, folder = canonical_name(name), Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: is not empty; name a new folder for the miniature")
    result = Miniature(name, folder / "annotations", folder / "videos")
    if name == "webdataset":
        return _webdataset(folder, sizes, seconds)
    if name == "videofolder":
        result = Miniature(name, folder, folder)
    for path in result[1:]:
        path.mkdir(parents=True, exist_ok=True)
    scenes = [Scene(colour, direction) for direction in DIRECTIONS for colour in COLOURS]
    rows, count = {}, 0
    for split, size in {**SIZES, **(sizes or {})}.items():
        rows[split] = [(count + i, scenes[(count + i) % len(scenes)]) for i in range(size)]
        count += size
    files = WRITERS[name](rows, result.annotations)
    for number, (file, scene) in enumerate(files.items()):
        write_clip(result.videos / file, scene, seconds, seed=number)
    return result


def _webdataset(folder: Path, sizes: dict[str, int] | None, seconds: float) -> Miniature:
    """The videofolder miniature in tars of a few clips each."""
    with tempfile.TemporaryDirectory() as place:
        source = make_miniature("videofolder", Path(place) / "clips", sizes, seconds)
        for split in available_splits(*source):
            write_shards(load_dataset(*source, split=split).dataset, folder / split, largest=SHARD_BYTES)
    return Miniature("webdataset", folder, folder)


def write_clip(path: Path, scene: Scene, seconds: float = 2.0, seed: int = 0, size: tuple[int, int] = (64, 48)) -> None:
    """Encode the scene: H.264, or MPEG-4 in an .avi."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for image in scene_frames(scene, seconds, seed, size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def scene_frames(scene: Scene, seconds: float, seed: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """The pictures of a clip, each (height, width, 3) uint8: a square on its way over noise that stands still."""
    width, height = size
    background = np.random.default_rng(seed).integers(10, 50, (height, width, 3), dtype=np.uint8)
    side, total = height // 3, max(1, round(seconds * FPS))
    dx, dy = DIRECTIONS[scene.direction]
    for step in range(total):
        travelled = (step / max(total - 1, 1) - 0.5) * 0.6
        x = int((width - side) * (0.5 + dx * travelled))
        y = int((height - side) * (0.5 + dy * travelled))
        image = background.copy()
        image[y : y + side, x : x + side] = COLOURS[scene.colour]
        yield image


Rows = dict[str, list[tuple[int, Scene]]]  # split -> (running number, scene)
Files = dict[str, Scene]  # path below the videos folder -> what it shows


def _videofolder(rows: Rows, folder: Path) -> Files:
    files = {}
    for split, items in rows.items():
        (folder / split).mkdir(parents=True)
        lines = []
        for number, scene in items:
            files[f"{split}/clip_{number:03d}.mp4"] = scene
            lines.append({"file_name": f"clip_{number:03d}.mp4", "captions": scene.captions(), "colour": scene.colour})
        _write(folder / split / "metadata.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return files


def _msrvtt(rows: Rows, folder: Path) -> Files:
    official = {"train": "train", "validation": "validate", "test": "test"}
    videos = [{"video_id": f"video{n}", "split": official[split]} for split, items in rows.items() for n, _ in items]
    everything = [item for items in rows.values() for item in items]
    sentences = [
        {"video_id": f"video{n}", "sen_id": 10 * n + i, "caption": text}
        for n, scene in everything
        for i, text in enumerate(scene.captions())
    ]
    _write_json(folder / "MSRVTT_data.json", {"info": {}, "videos": videos, "sentences": sentences})
    train = [[f"video{n}"] for n, _ in rows["train"] + rows["validation"]]
    _write_csv(folder / "MSRVTT_train.9k.csv", [["video_id"], *train])
    _write_csv(folder / "MSRVTT_train.7k.csv", [["video_id"], *train[: -len(train) // 4]])
    test = [[f"ret{i}", f"msr{n}", f"video{n}", scene.captions()[0]] for i, (n, scene) in enumerate(rows["test"])]
    _write_csv(folder / "MSRVTT_JSFUSION_test.csv", [["key", "vid_key", "video_id", "sentence"], *test])
    return {f"video{n}.mp4": scene for n, scene in everything}


def _msvd(rows: Rows, folder: Path) -> Files:
    files, captions = {}, {}
    for split, items in rows.items():
        ids = {f"a-B_{number:03d}_{number}_{number + 7}": scene for number, scene in items}
        _write(folder / f"{_short(split)}_list.txt", "".join(video_id + "\n" for video_id in ids))
        captions |= {video_id: [text.split() for text in scene.captions()] for video_id, scene in ids.items()}
        files |= {f"{video_id}.avi": scene for video_id, scene in ids.items()}
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps(captions))
    return files


def _didemo(rows: Rows, folder: Path) -> Files:
    uploads = (".mov", ".avi", ".", ".m4v")
    files = {}
    for split, items in rows.items():
        names = {f"{10 + n}@N00_{n:010d}_abcdef{uploads[n % 4]}": scene for n, scene in items}
        data = [
            {
                "annotation_id": 3 * i + j,
                "description": text,
                "times": [[j, j], [0, j]],
                "video": name,
                "num_segments": 6,
            }
            for i, (name, scene) in enumerate(names.items())
            for j, text in enumerate(scene.captions())
        ]
        _write_json(folder / f"{_short(split)}_data.json", data)
        _write(folder / f"{_short(split)}_list.txt", "".join(name + "\n" for name in names))
        files |= {name.rsplit(".", 1)[0] + ".mp4": scene for name, scene in names.items()}  # converted, as most copies
    return files


def _activitynet(rows: Rows, folder: Path) -> Files:
    files = {}
    for file_name, items in (("train.json", rows["train"]), ("val_1.json", rows["test"])):
        data = {}
        for number, scene in items:
            sentences = [
                text.capitalize() + "." if i == 0 else f" {text.capitalize()}."
                for i, text in enumerate(scene.captions())
            ]
            data[f"v_{number:011d}"] = {
                "duration": 2.0,
                "timestamps": [[0, 1], [0.5, 2], [1, 2]],
                "sentences": sentences,
            }
            files[f"v_{number:011d}{'.mkv' if number % 3 == 2 else '.mp4'}"] = scene
        _write_json(folder / file_name, data)
    return files


def _lsmdc(rows: Rows, folder: Path) -> Files:
    from dmae.data.loaders.lsmdc import FILES

    files = {}
    for split, items in rows.items():
        lines = []
        for number, scene in items:
            film = f"{1000 + number % 2}_A_Film"
            clip = f"{film}_00.00.{number:02d}.926-00.00.{number + 2:02d}.129"
            times = ["00.00.51.926", "00.00.54.129", "00.00.51.900", "00.00.54.200"]
            lines.append("\t".join([clip, *times, scene.captions()[2].replace("someone", "SOMEONE") + "."]) + "\n")
            files[f"{film}/{clip}.avi"] = scene
        _write(folder / FILES[split], "".join(lines))
    return files


def _vatex(rows: Rows, folder: Path) -> Files:
    files, captions = {}, {}
    for split, items in rows.items():
        ids = {f"Ab-{number:08d}_000010_000020": scene for number, scene in items}
        _write(folder / f"{_short(split)}_list.txt", "".join(video_id + "\n" for video_id in ids))
        captions |= {video_id: scene.captions() for video_id, scene in ids.items()}
        files |= {f"{video_id}.mp4": scene for video_id, scene in ids.items()}
    _write_json(folder / "ref_captions.json", captions)
    return files


def _short(split: str) -> str:
    return "val" if split == "validation" else split


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_json(path: Path, data) -> None:
    _write(path, json.dumps(data))


def _write_csv(path: Path, rows: list[list[str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)


WRITERS: dict[str, Callable[[Rows, Path], Files]] = {
    "videofolder": _videofolder,
    "msrvtt-9k": _msrvtt,
    "msrvtt-7k": _msrvtt,
    "msrvtt-full": _msrvtt,
    "msvd": _msvd,
    "didemo": _didemo,
    "activitynet": _activitynet,
    "lsmdc": _lsmdc,
    "vatex": _vatex,
}

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python -m dmae.data.miniature NAME FOLDER; NAME is one of {', '.join(DATASETS)}")
    made = make_miniature(sys.argv[1], sys.argv[2])
    print(f"annotations: {made.annotations}\nvideos: {made.videos}")
