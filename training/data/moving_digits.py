"""MovingDigits: short encoded clips of coloured handwritten digits that move, with captions and known near misses.

Every clip is an H.264 mp4 of one to three digits (scikit-learn's 8x8 scans of real handwriting; the three splits use
different stretches of that file, which was collected writer by writer). Each digit has a colour and a motion; two or
three digits appear one after the other (`sequence`) or side by side (`together`). A burst of distractor frames may
interrupt the clip. In the validation and test splits every video has *near misses*: videos that differ in exactly one
of colour, digit, motion or order.

    from dmae.training.data.moving_digits import render_moving_digits
    render_moving_digits("corpus", preset="demo", seed=0)

writes `corpus/{train,validation,test}/metadata.jsonl`, the clips beside it, and a dataset card: a `videofolder` that
`datasets.load_dataset("corpus")` reads. The same arguments give the same files, byte for byte, on one FFmpeg build.
"""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from dmae.retrieval.progress import progress
from dmae.training.data.moving_digits_captions import write_captions

COLOURS = {
    "red": (235, 45, 45),
    "green": (50, 200, 70),
    "blue": (60, 110, 255),
    "yellow": (245, 220, 50),
    "purple": (180, 70, 230),
    "orange": (255, 140, 30),
    "cyan": (60, 220, 225),
    "white": (240, 240, 240),
}
MOTIONS = ("left", "right", "up", "down", "growing", "shrinking", "still")
ATTRIBUTES = ("colour", "digit", "motion", "order")
FPS = 8
# Without macroblock trees: they make x264's choices depend on memory alignment, so equal frames gave unequal files.
X264 = {"preset": "veryfast", "crf": "23", "threads": "1", "x264-params": "mbtree=0:rc-lookahead=0"}
TRIES = 2000  # draws of an unused scene before the parameters are called too narrow
# load_digits() keeps the order in which 13 people filled in their forms, so contiguous stretches are other hands.
HANDWRITING = {"train": (0, 1200), "validation": (1200, 1440), "test": (1440, 1797)}


@dataclass(frozen=True)
class Actor:
    """One digit of a scene."""

    colour: str
    digit: int
    motion: str


@dataclass(frozen=True)
class Scene:
    """What a caption can say of a clip. `arrangement` is "sequence" (one after the other) or "together"."""

    actors: tuple[Actor, ...]
    arrangement: str = "sequence"

    @property
    def key(self) -> tuple:
        """Equal keys are the same to a reader: the order of digits counts only in a sequence."""
        actors = [(a.colour, a.digit, a.motion) for a in self.actors]
        return (self.arrangement, *(actors if self.arrangement == "sequence" else sorted(actors)))


@dataclass(frozen=True)
class Corpus:
    """Size and difficulty. `groups` of validation and test hold one scene and its near misses each.

    Attributes:
        train: videos of the training split.
        validation_groups, test_groups: groups of one video and up to four near misses.
        captions: captions of a training video (validation and test videos have one).
        filler: the chance that a caption opens with words that say nothing, and that a digit is called one.
        actors: shares of scenes with one, two and three digits.
        together: share of scenes of two or three digits that show them at once.
        size: height and width in pixels.
        digit_size: smallest and largest digit, as a share of the picture.
        jitter: how far from the middle a digit's path may lie, as a share of the picture.
        travel: how far a moving digit goes, as a share of the picture.
        seconds: shortest and longest clip, at 8 frames per second.
        distractors: share of clips with a burst of unrelated frames.
        noise: standard deviation of the pixel noise, of 255.
        colours: how many of the eight colours are used; more than the digits of the fullest scene.
        digits: which digits are used, likewise.
    """

    train: int = 4000
    validation_groups: int = 24
    test_groups: int = 90
    captions: int = 5
    filler: float = 0.25
    actors: tuple[float, ...] = (0.6, 0.4)
    together: float = 0.35
    size: int = 64
    digit_size: tuple[float, float] = (0.6, 0.68)
    jitter: float = 0.0
    travel: float = 0.25
    seconds: tuple[float, float] = (2.0, 4.0)
    distractors: float = 0.3
    noise: float = 3.0
    colours: int = 5
    digits: tuple[int, ...] = (0, 2, 6, 7)


# "demo" is what small towers learn from nothing in minutes: few colours, and digits that differ in any handwriting, so
# that a batch holds videos which only the digit tells apart. "full" has everything.
FULL = {"actors": (0.25, 0.4, 0.35), "jitter": 0.03, "travel": 0.35, "colours": 8, "digits": tuple(range(10))}
PRESETS = {
    "demo": Corpus(),
    "tiny": Corpus(train=16, validation_groups=2, test_groups=4, size=48, seconds=(2.0, 2.5)),
    "ablation": Corpus(train=2000, validation_groups=4, test_groups=100),
    "full": Corpus(train=20000, validation_groups=100, test_groups=250, size=96, **FULL),
}


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
    if preset not in PRESETS:
        raise ValueError(f"MovingDigits has no preset {preset!r}; choose one of {', '.join(PRESETS)}")
    unknown = set(overrides) - set(Corpus.__dataclass_fields__)
    if unknown:
        raise ValueError(
            f"MovingDigits has no parameter {unknown.pop()!r}; it has {', '.join(Corpus.__dataclass_fields__)}"
        )
    corpus = replace(PRESETS[preset], **overrides)
    if min(corpus.colours, len(corpus.digits)) <= len(corpus.actors):
        raise ValueError(
            f"MovingDigits: scenes of {len(corpus.actors)} digits need more colours and more digits than that "
            f"to choose from, got {corpus.colours} colours and digits {corpus.digits}"
        )
    output_dir = Path(output_dir)
    wanted = json.loads(json.dumps({"name": "MovingDigits", "version": 1, "seed": seed, "parameters": asdict(corpus)}))
    if is_rendered(output_dir, wanted):
        return output_dir
    partial = output_dir.with_name(f"{output_dir.name}.rendering-{os.getpid()}")
    try:
        _render_all(partial, corpus, seed, num_workers or os.cpu_count() or 1)
        (partial / "README.md").write_text(_card(corpus, seed), encoding="utf-8")
        (partial / "corpus.json").write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        partial.rename(output_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output_dir


def is_rendered(output_dir: Path, wanted: dict) -> bool:
    """Whether `output_dir` holds exactly this corpus. Anything else there is refused, never overwritten."""
    if not output_dir.exists():
        return False
    manifest = output_dir / "corpus.json"
    found = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else None
    if found != wanted:
        what = "another MovingDigits corpus" if found else "something else"
        raise ValueError(f"{output_dir} already holds {what}; remove it or choose another folder")
    return True


def near_misses(split_dir: str | Path) -> list[tuple[str, str, str]]:
    """(video_id, near miss's video_id, attribute) of every ordered near-miss pair that `metadata.jsonl` records."""
    rows = (json.loads(line) for line in (Path(split_dir) / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
    return [(row["video_id"], near["video_id"], near["attribute"]) for row in rows for near in row["near_misses"]]


def _render_all(folder: Path, corpus: Corpus, seed: int, workers: int) -> None:
    jobs = []
    for number, split in enumerate(HANDWRITING):
        (folder / split).mkdir(parents=True)
        rng = np.random.default_rng([seed, number])
        rows = list(_split_rows(split, corpus, rng))
        with open(folder / split / "metadata.jsonl", "w", encoding="utf-8") as file:
            for index, (scene, row) in enumerate(rows):
                file.write(json.dumps(row) + "\n")
                jobs.append((folder / split / row["file_name"], scene, split, corpus, [seed, number, index]))
    with progress(len(jobs), "rendering", "clips") as advance, ProcessPoolExecutor(workers) as pool:
        try:
            for _ in pool.map(_render_clip, jobs, chunksize=16):
                advance(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _split_rows(split: str, corpus: Corpus, rng: np.random.Generator) -> Iterator[tuple[Scene, dict]]:
    """The scenes and metadata rows of one split."""
    if split == "train":
        for index in range(corpus.train):
            scene = random_scene(corpus, rng)
            yield (
                scene,
                _row(f"train_{index:05d}", scene, write_captions(scene, rng, corpus.captions, corpus.filler), []),
            )
        return
    groups = corpus.test_groups if split == "test" else corpus.validation_groups
    seen, texts = set(), set()
    for group in range(groups):
        members = _near_miss_group(corpus, rng, seen)
        ids = [f"{split}_{group:04d}_{name}" for name, _ in members]
        for me, (_, scene) in enumerate(members):
            near = [
                {"video_id": ids[other], "attribute": attribute}
                for other in range(len(members))
                if (attribute := differing_attribute(scene, members[other][1]))
            ]
            yield scene, _row(ids[me], scene, _unused_caption(scene, corpus, rng, texts), near)


def _row(video_id: str, scene: Scene, captions: list[str], near: list[dict]) -> dict:
    return {
        "file_name": f"{video_id}.mp4",
        "video_id": video_id,
        "captions": captions,
        "arrangement": scene.arrangement,
        "actors": [asdict(actor) for actor in scene.actors],
        "near_misses": near,
    }


def _unused_caption(scene: Scene, corpus: Corpus, rng: np.random.Generator, texts: set[str]) -> list[str]:
    while (caption := write_captions(scene, rng, 1, corpus.filler)[0]) in texts:
        pass
    texts.add(caption)
    return [caption]


def random_scene(corpus: Corpus, rng: np.random.Generator) -> Scene:
    """A scene of one to three digits, all different, so that a caption's parts can be told apart."""
    count = 1 + int(rng.choice(len(corpus.actors), p=corpus.actors))
    colours = rng.choice(list(COLOURS)[: corpus.colours], count, replace=False)
    digits = rng.choice(corpus.digits, count, replace=False)
    actors = tuple(Actor(str(c), int(d), str(rng.choice(MOTIONS))) for c, d in zip(colours, digits, strict=True))
    together = count > 1 and rng.random() < corpus.together
    return Scene(actors, "together" if together else "sequence")


def _near_miss_group(corpus: Corpus, rng: np.random.Generator, seen: set) -> list[tuple[str, Scene]]:
    """A new scene and one near miss per attribute, none of them in `seen`, which grows."""
    for _ in range(TRIES):
        base = random_scene(corpus, rng)
        ordered = base.arrangement == "sequence" and len(base.actors) > 1
        names = ATTRIBUTES if ordered else ATTRIBUTES[:-1]
        members = [("base", base), *((name, changed(base, name, corpus, rng)) for name in names)]
        keys = {scene.key for _, scene in members}
        if len(keys) == len(members) and not keys & seen:
            seen |= keys
            return members
    raise ValueError(
        f"MovingDigits: {corpus.colours} colours and actors={corpus.actors} leave too few different scenes for "
        f"{corpus.test_groups} test groups; ask for fewer groups, more colours or more scenes of several digits"
    )


def changed(scene: Scene, attribute: str, corpus: Corpus, rng: np.random.Generator) -> Scene:
    """`scene` with one attribute of one digit, or the order of two digits, changed."""
    actors = list(scene.actors)
    if attribute == "order":
        i, j = rng.choice(len(actors), 2, replace=False)
        actors[i], actors[j] = actors[j], actors[i]
        return replace(scene, actors=tuple(actors))
    i = int(rng.integers(len(actors)))
    taken = {getattr(actor, attribute) for actor in actors} if attribute != "motion" else {actors[i].motion}
    pool = {"colour": list(COLOURS)[: corpus.colours], "digit": corpus.digits, "motion": MOTIONS}[attribute]
    value = rng.choice([v for v in pool if v not in taken]).item()
    actors[i] = replace(actors[i], **{attribute: value})
    return replace(scene, actors=tuple(actors))


def differing_attribute(one: Scene, other: Scene) -> str | None:
    """The one attribute in which two scenes differ, or None where they are equal or differ in more."""
    if one.arrangement != other.arrangement or len(one.actors) != len(other.actors) or one.key == other.key:
        return None
    if set(one.actors) == set(other.actors):
        moved = sum(a != b for a, b in zip(one.actors, other.actors, strict=True))
        return "order" if moved == 2 else None
    names = [
        name
        for a, b in zip(one.actors, other.actors, strict=True)
        for name in ("colour", "digit", "motion")
        if getattr(a, name) != getattr(b, name)
    ]
    return names[0] if len(names) == 1 else None


def _render_clip(job: tuple) -> None:
    path, scene, split, corpus, seed = job
    rng = np.random.default_rng([*seed, 7])
    _encode(path, scene_frames(scene, split, corpus, rng))


def scene_frames(scene: Scene, split: str, corpus: Corpus, rng: np.random.Generator) -> np.ndarray:
    """The frames of a clip, (N, size, size, 3) uint8."""
    total = round(rng.uniform(*corpus.seconds) * FPS)
    burst = int(rng.integers(2, 5)) if rng.random() < corpus.distractors else 0
    shown = total - burst
    background = rng.uniform(0, 40, 3)
    frames = np.tile(background, (shown, corpus.size, corpus.size, 1))
    parts = len(scene.actors) if scene.arrangement == "sequence" else 1
    cuts = np.linspace(0, shown, parts + 1).round().astype(int)
    centres = rng.permutation(3) if scene.arrangement == "together" else [None] * 3
    for number, actor in enumerate(scene.actors):
        first, last = (cuts[number], cuts[number + 1]) if parts > 1 else (0, shown)
        _draw(frames[first:last], actor, _glyph(actor.digit, split, rng), corpus, centres[number], rng)
    at = int(rng.integers(0, parts + 1))
    frames = np.insert(frames, [cuts[at]] * burst, _distractor(corpus.size, rng), axis=0)
    frames = frames + rng.normal(0, corpus.noise, frames.shape)
    return frames.clip(0, 255).astype(np.uint8)


def _draw(frames: np.ndarray, actor: Actor, glyph: np.ndarray, corpus: Corpus, lane: int | None, rng) -> None:
    """Paint a moving digit over `frames` (n, size, size, 3), in place. A `lane` keeps digits shown together apart."""
    size = corpus.size
    colour = np.array(COLOURS[actor.colour]) * rng.uniform(0.85, 1.0)
    side = size * rng.uniform(*corpus.digit_size) * (1.0 if lane is None else 0.75)
    x, y = rng.uniform(0.5 - corpus.jitter, 0.5 + corpus.jitter, 2) * size
    travel = corpus.travel * size
    across = actor.motion in ("left", "right")
    if lane is not None:  # a lane is a third of the picture, across the direction of movement
        spread = (0.2 + 0.3 * lane) * size
        x, y = (x, spread) if across else (spread, y)
    for frame, t in zip(frames, np.linspace(-0.5, 0.5, len(frames)), strict=True):
        dx = {"left": -t, "right": t}.get(actor.motion, 0.0) * travel
        dy = {"up": -t, "down": t}.get(actor.motion, 0.0) * travel
        scale = {"growing": 1.0 + 1.1 * t, "shrinking": 1.0 - 1.1 * t}.get(actor.motion, 1.0)
        alpha = _place(glyph, size, x + dx, y + dy, side * scale)[..., None]
        frame[:] = frame * (1 - alpha) + alpha * colour


def _place(glyph: np.ndarray, size: int, x: float, y: float, side: float) -> np.ndarray:
    """The 8x8 glyph as an opacity map (size, size), centred at (x, y) with height and width `side`: bilinear."""
    grid = np.arange(size) + 0.5

    def weights(centre: float) -> np.ndarray:
        position = (grid - centre) / side * 8 + 4 - 0.5
        return np.clip(1 - np.abs(position[:, None] - np.arange(8)[None]), 0, None)

    return np.clip(weights(y) @ glyph @ weights(x).T * 1.2, 0, 1)


def _glyph(digit: int, split: str, rng: np.random.Generator) -> np.ndarray:
    images, labels = _handwriting()
    first, last = HANDWRITING[split]
    choices = np.flatnonzero(labels[first:last] == digit) + first
    return images[rng.choice(choices)]


_DIGITS = None


def _handwriting() -> tuple[np.ndarray, np.ndarray]:
    global _DIGITS
    if _DIGITS is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        _DIGITS = digits.images / 16.0, digits.target
    return _DIGITS


def _distractor(size: int, rng: np.random.Generator) -> np.ndarray:
    """A frame that shows no digit: a coarse pattern of random colours."""
    return np.kron(rng.uniform(0, 200, (4, 4, 3)), np.ones((-(-size // 4), -(-size // 4), 1)))[:size, :size]


def _encode(path: Path, frames: np.ndarray) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=X264)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = frames.shape[2], frames.shape[1], "yuv420p", 12
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def _card(corpus: Corpus, seed: int) -> str:
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
