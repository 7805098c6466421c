"""MovingObjects as a corpus: splits of clips with captions and recorded near misses, in memory or as encoded files.

    from dmae.data.moving_objects.corpus import render_moving_objects
    render_moving_objects("corpus", preset="study", seed=0)

writes `corpus/{train,validation,test}/metadata.jsonl`, H.264 clips beside it and a dataset card: a `videofolder` that
`datasets.load_dataset("corpus")` reads and `dmae push` publishes. Every scene is unique in the corpus. A caption of
validation or test is true of its own video alone; one of a training video of no other of its family.
"""

import json
from dataclasses import asdict, dataclass
from functools import partial
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
from dmae.data.rendering import draw_clips, encode_clip, rendered_folder, with_overrides

SPLITS = ("train", "validation", "test")
FAMILY = 4  # training videos that differ in one attribute each
REPEATS = 200  # captions of a video that were drawn before, until one is taken twice


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
    clips = []
    for family, group in enumerate(groups):
        members = range(len(clips), len(clips) + len(group))
        for index in members:
            near = tuple(
                (ids[other], name)
                for other in members
                if (name := differing_attribute(scenes[index], scenes[other])) is not None
            )
            captions = _captions(scenes[index], truth, set(members) if split == "train" else None, world, rng)
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


def _captions(scene, truth, among, world: World, rng) -> tuple[str, ...]:
    """One caption, or (for training, with `among`) several: different ones for as long as `REPEATS` draws find another.

    Without filler a video of one thing of which all must be told has fewer captions than its motion has verbs.
    """
    wanted, found, repeats = 1 if among is None else world.captions, [], 0
    while len(found) < wanted:
        text = say(facts_apart(scene, truth, among, rng, world.telling), rng, world.filler)
        if text in found and repeats < REPEATS:
            repeats += 1
        else:
            found.append(text)
    return tuple(found)


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
    world = with_overrides("MovingObjects", PRESETS, preset, overrides)
    manifest = {"name": "MovingObjects", "version": 1, "seed": seed, "world": asdict(world)}
    fill = partial(_render, world=world, seed=seed, workers=num_workers)
    return rendered_folder(Path(output_dir), manifest, corpus_card(world, seed), fill)


def _render(folder: Path, world: World, seed: int, workers: int | None) -> None:
    jobs = []
    for split, clips in corpus_clips(world, seed).items():
        (folder / split).mkdir(parents=True)
        lines = "".join(json.dumps(clip.row()) + "\n" for clip in clips)
        (folder / split / "metadata.jsonl").write_text(lines, encoding="utf-8")
        jobs += [(folder / split / f"{clip.video_id}.mp4", clip, world) for clip in clips]
    draw_clips(render_clip, jobs, workers)


def render_clip(job: tuple[Path, Clip, World]) -> None:
    """Draw and write one clip."""
    path, clip, world = job
    encode_clip(path, scene_frames(clip.scene, world, list(clip.seed)), world.fps)
