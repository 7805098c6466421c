"""MovingObjects as a corpus: splits of clips with captions and recorded near misses, in memory or as encoded files.

    from dmae.data.moving_objects.corpus import render_moving_objects
    render_moving_objects("corpus", preset="study", seed=0)

writes `corpus/{train,validation,test}/metadata.jsonl`, H.264 clips beside it and a dataset card: a `videofolder` that
`datasets.load_dataset("corpus")` reads and `dmae push` publishes. Every scene is unique in the corpus. A caption of
validation or test is true of its own video alone; one of a training video of no other of its family.
"""

import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from dmae.data.moving_objects.captions import Truth, facts_apart, say
from dmae.data.moving_objects.card import corpus_card
from dmae.data.moving_objects.frames import scene_frames
from dmae.data.moving_objects.scenes import (
    PRESETS,
    Collection,
    Scene,
    World,
    differing_attribute,
    near_miss_group,
    unused_scene,
)
from dmae.files import partial_name
from dmae.inference.progress import progress

SPLITS = ("train", "validation", "test")
FAMILY = 4  # training videos that differ in one attribute each
X264 = {"preset": "veryfast", "crf": "23", "threads": "1", "x264-params": "mbtree=0:rc-lookahead=0"}


@dataclass(frozen=True)
class Clip:
    """A video of the corpus. `family` numbers its group of near misses; `seed` draws what no caption tells."""

    video_id: str
    scene: Scene
    captions: tuple[str, ...]
    family: int
    seed: tuple[int, int, int]
    near_misses: tuple[tuple[str, str], ...] = ()  # (video_id, attribute)

    def row(self) -> dict:
        """Its line of `metadata.jsonl`."""
        return {
            "file_name": f"{self.video_id}.mp4",
            "video_id": self.video_id,
            "captions": list(self.captions),
            "shots": [asdict(shot) for shot in self.scene.shots],
            "family": self.family,
            "near_misses": [{"video_id": video_id, "attribute": name} for video_id, name in self.near_misses],
        }


def corpus_clips(world: World, seed: int) -> dict[str, list[Clip]]:
    """All clips of the three splits: the same arguments give the same clips."""
    seen = Collection()
    return {split: _split_clips(world, split, (seed, number), seen) for number, split in enumerate(SPLITS)}


def _split_clips(world: World, split: str, seed: tuple[int, int], seen: Collection) -> list[Clip]:
    rng = np.random.default_rng(seed)
    groups = _families(world, split, rng, seen)
    scenes = [scene for group in groups for scene in group]
    truth, ids = Truth(scenes), [f"{split}_{index:05d}" for index in range(len(scenes))]
    clips, texts = [], set()
    for family, group in enumerate(groups):
        members = range(len(clips), len(clips) + len(group))
        for index in members:
            near = tuple(
                (ids[other], name)
                for other in members
                if (name := differing_attribute(scenes[index], scenes[other])) is not None
            )
            captions = _captions(scenes[index], truth, set(members) if split == "train" else None, world, rng, texts)
            clips.append(Clip(ids[index], scenes[index], captions, family, (*seed, index), near))
    return clips


def _families(world: World, split: str, rng: np.random.Generator, seen: Collection) -> list[list[Scene]]:
    if split == "train":
        groups = round(world.near_misses * world.train / FAMILY)
        singles, size = world.train - groups * FAMILY, FAMILY
    else:
        groups, singles = getattr(world, f"{split}_groups"), getattr(world, f"{split}_singles")
        size = 7
    families = [near_miss_group(world, rng, seen, size) for _ in range(groups)]
    families += [[unused_scene(world, rng, seen)] for _ in range(singles)]
    return families


def _captions(scene, truth, among, world: World, rng, texts: set[str]) -> tuple[str, ...]:
    """One caption, never used before in the split, or (for training, with `among`) several different ones."""
    wanted, found = 1 if among is None else world.captions, {}
    while len(found) < wanted:
        text = say(facts_apart(scene, truth, among, rng, world.telling), rng, world.filler)
        if among is not None or text not in texts:
            found[text] = None
            texts.add(text)
    return tuple(found)


# ---------------------------------------------------------------------- as files


def render_moving_objects(
    output_dir: str | Path, preset: str = "study", seed: int = 0, num_workers: int | None = None, **overrides
) -> Path:
    """Render the corpus into `output_dir` and return that path; a corpus of the same arguments is left as it is.

    Args:
        preset: one of `PRESETS`; `overrides` are fields of `World`, its dials among them.
        num_workers: rendering processes (default: one per core).

    Raises:
        ValueError: an unknown preset or field, or `output_dir` holds something else.
        OSError: the disk is full; what was rendered is removed, nothing is left that looks whole.
    """
    world = world_of(preset, overrides)
    output_dir = Path(output_dir)
    wanted = json.loads(json.dumps({"name": "MovingObjects", "version": 1, "seed": seed, "world": asdict(world)}))
    if _is_rendered(output_dir, wanted):
        return output_dir
    partial = partial_name(output_dir)
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        _render_all(partial, world, seed, num_workers or os.cpu_count() or 1)
        (partial / "README.md").write_text(corpus_card(world, seed), encoding="utf-8")
        (partial / "corpus.json").write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        partial.rename(output_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output_dir


def world_of(preset: str, overrides: dict) -> World:
    """The preset's world with some fields changed; ValueError names an unknown preset or field."""
    if preset not in PRESETS:
        raise ValueError(f"MovingObjects has no preset {preset!r}; choose one of {', '.join(PRESETS)}")
    if unknown := set(overrides) - set(World.__dataclass_fields__):
        raise ValueError(
            f"MovingObjects has no parameter {unknown.pop()!r}; it has {', '.join(World.__dataclass_fields__)}"
        )
    return replace(PRESETS[preset], **overrides)


def _is_rendered(output_dir: Path, wanted: dict) -> bool:
    """Whether `output_dir` holds exactly this corpus. Anything else there is refused, never overwritten."""
    if not output_dir.exists():
        return False
    manifest = output_dir / "corpus.json"
    found = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else None
    if found != wanted:
        what = "another MovingObjects corpus" if found else "something else"
        raise ValueError(f"{output_dir} already holds {what}; remove it or choose another folder")
    return True


def _render_all(folder: Path, world: World, seed: int, workers: int) -> None:
    jobs = []
    for split, clips in corpus_clips(world, seed).items():
        (folder / split).mkdir(parents=True)
        lines = "".join(json.dumps(clip.row()) + "\n" for clip in clips)
        (folder / split / "metadata.jsonl").write_text(lines, encoding="utf-8")
        jobs += [(folder / split / f"{clip.video_id}.mp4", clip, world) for clip in clips]
    with progress(len(jobs), "rendering", "clips") as advance, ProcessPoolExecutor(workers) as pool:
        try:
            for _ in pool.map(render_clip, jobs, chunksize=16):
                advance(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def render_clip(job: tuple[Path, Clip, World]) -> None:
    """Draw and write one clip as H.264 in an mp4."""
    import av

    path, clip, world = job
    frames = scene_frames(clip.scene, world, list(clip.seed))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=world.fps, options=X264)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = frames.shape[2], frames.shape[1], "yuv420p", 12
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
