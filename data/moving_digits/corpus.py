"""MovingDigits: short encoded clips of coloured handwritten digits that move, with captions and known near misses.

Every clip is an H.264 mp4 of one to three digits (scikit-learn's 8x8 scans of real handwriting; the three splits use
different stretches of that file, which was collected writer by writer). Each digit has a colour and a motion; two or
three digits appear one after the other (`sequence`) or side by side (`together`). A burst of distractor frames may
interrupt the clip. In the validation and test splits every video has *near misses*: videos that differ in exactly one
of colour, digit, motion or order.

    from dmae.data.moving_digits.corpus import render_moving_digits
    render_moving_digits("corpus", preset="demo", seed=0)

writes `corpus/{train,validation,test}/metadata.jsonl`, the clips beside it, and a dataset card: a `videofolder` that
`datasets.load_dataset("corpus")` reads. The same arguments give the same files, byte for byte, on one FFmpeg build.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from dmae.data.moving_digits.captions import write_captions
from dmae.data.moving_digits.frames import FPS, HANDWRITING, render_clip
from dmae.data.moving_digits.scenes import (
    PRESETS,
    Corpus,
    Scene,
    differing_attribute,
    near_miss_group,
    random_scene,
)
from dmae.data.rendering import draw_clips, rendered_folder, with_overrides


def render_moving_digits(
    output_dir: str | Path,
    preset: str = "demo",
    seed: int = 0,
    num_workers: int | None = None,
    **overrides,
) -> Path:
    """Render the corpus into `output_dir` and return that path; a corpus of the same arguments is left as it is.

    Args:
        preset: one of `PRESETS`; `overrides` are fields of `Corpus`.
        num_workers: rendering processes (default: one per core).

    Raises:
        ValueError: an unknown preset or field, or `output_dir` holds something else.
        OSError: the disk is full; what was rendered is removed, nothing is left that looks whole.
    """
    corpus = with_overrides("MovingDigits", PRESETS, preset, overrides)
    if min(corpus.colours, len(corpus.digits)) <= len(corpus.actors):
        raise ValueError(
            f"MovingDigits: scenes of {len(corpus.actors)} digits need more colours and more digits than that "
            f"to choose from, got {corpus.colours} colours and digits {corpus.digits}"
        )
    manifest = {"name": "MovingDigits", "version": 1, "seed": seed, "parameters": asdict(corpus)}
    fill = partial(_render, corpus=corpus, seed=seed, workers=num_workers)
    return rendered_folder(Path(output_dir), manifest, corpus_card(corpus, seed), fill)


def _render(folder: Path, corpus: Corpus, seed: int, workers: int | None) -> None:
    jobs = []
    for number, split in enumerate(HANDWRITING):
        (folder / split).mkdir(parents=True)
        rng = np.random.default_rng([seed, number])
        with open(folder / split / "metadata.jsonl", "w", encoding="utf-8") as file:
            for index, (scene, row) in enumerate(_split_rows(split, corpus, rng)):
                file.write(json.dumps(row) + "\n")
                jobs.append((folder / split / row["file_name"], scene, split, corpus, [seed, number, index]))
    draw_clips(render_clip, jobs, workers)


def _split_rows(split: str, corpus: Corpus, rng: np.random.Generator) -> Iterator[tuple[Scene, dict]]:
    """The scenes and metadata rows of one split."""
    if split == "train":
        for index in range(corpus.train):
            scene = random_scene(corpus, rng)
            captions = write_captions(scene, rng, corpus.captions, corpus.filler)
            yield scene, _row(f"train_{index:05d}", scene, captions, [])
        return
    groups = corpus.test_groups if split == "test" else corpus.validation_groups
    seen = set()
    for group in range(groups):
        members = near_miss_group(corpus, rng, seen)
        ids = [f"{split}_{group:04d}_{name}" for name, _ in members]
        for me, (_, scene) in enumerate(members):
            near = [
                {"video_id": ids[other], "attribute": attribute}
                for other in range(len(members))
                if (attribute := differing_attribute(scene, members[other][1]))
            ]
            captions = write_captions(scene, rng, 1, corpus.filler)
            yield scene, _row(ids[me], scene, captions, near)


def _row(video_id: str, scene: Scene, captions: list[str], near: list[dict]) -> dict:
    return {
        "file_name": f"{video_id}.mp4",
        "video_id": video_id,
        "captions": captions,
        "arrangement": scene.arrangement,
        "actors": [asdict(actor) for actor in scene.actors],
        "near_misses": near,
    }


def corpus_card(corpus: Corpus, seed: int) -> str:
    sizes = (
        f"{corpus.train} training videos, {corpus.validation_groups} validation and {corpus.test_groups} test groups"
    )
    return f"""---
license: apache-2.0
task_categories:
- feature-extraction
tags:
- text-to-video-retrieval
- synthetic
pretty_name: MovingDigits
---

# MovingDigits

Generated clips of coloured handwritten digits that move, with captions, for checking text-to-video retrieval end to end
and for controlled comparisons: {sizes} of a scene and its near misses, {corpus.size} pixels, {FPS} frames per second,
seed {seed}.

- `captions`: {corpus.captions} per training video, one per validation and test video (unique within the split).
- `actors`, `arrangement`: what is shown, in order (`sequence`) or at once (`together`).
- `near_misses`: the videos of the split that differ from this one in exactly one `attribute`
  (colour, digit, motion, order).

The handwriting is scikit-learn's `load_digits` (the test half of *Optical Recognition of Handwritten Digits*,
E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, CC BY 4.0); each split draws from another stretch of that
file, so from other writers. Everything else is drawn by the generator. Nothing here resembles natural video: good
numbers on it say that a system works and how methods compare under control, not how well a model finds real videos.
"""
