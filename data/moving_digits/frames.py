"""How MovingDigits draws and encodes a scene: handwriting in colour over noise, H.264 in an mp4."""

import functools
import math

import numpy as np

from dmae.data.moving_digits.scenes import COLOURS, Actor, Corpus, Scene
from dmae.data.rendering import encode_clip

FPS = 8
# load_digits() keeps the order in which 13 people filled in their forms, so contiguous stretches are other hands.
HANDWRITING = {"train": (0, 1200), "validation": (1200, 1440), "test": (1440, 1797)}


def render_clip(job: tuple) -> None:
    """Draw and write one clip. job: (path, scene, split, corpus, seed of three integers)."""
    path, scene, split, corpus, seed = job
    rng = np.random.default_rng([*seed, 7])
    encode_clip(path, scene_frames(scene, split, corpus, rng), FPS)


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
    frames += rng.normal(0, corpus.noise, frames.shape)
    return frames.clip(0, 255, out=frames).astype(np.uint8)


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
    for frame, t in zip(frames, np.linspace(-0.5, 0.5, len(frames))):
        dx = {"left": -t, "right": t}.get(actor.motion, 0.0) * travel
        dy = {"up": -t, "down": t}.get(actor.motion, 0.0) * travel
        scale = {"growing": 1.0 + 1.1 * t, "shrinking": 1.0 - 1.1 * t}.get(actor.motion, 1.0)
        rows, columns, alpha = _place(glyph, size, x + dx, y + dy, side * scale)
        shown = frame[rows, columns]
        shown += alpha[..., None] * (colour - shown)


def _place(glyph: np.ndarray, size: int, x: float, y: float, side: float) -> tuple[slice, slice, np.ndarray]:
    """Where the 8x8 glyph shows, centred at (x, y) with height and width `side`, and its opacity there: bilinear."""

    def weights(centre: float) -> tuple[slice, np.ndarray]:
        reach = side * 9 / 16  # half the glyph and, on either side, half a pixel of its own
        first = max(0, math.floor(centre - reach))
        last = max(first, min(size, math.ceil(centre + reach)))  # of a glyph outside of the picture nothing
        position = (np.arange(first, last) + 0.5 - centre) / side * 8 + 4 - 0.5
        return slice(first, last), np.clip(1 - np.abs(position[:, None] - np.arange(8)[None]), 0, None)

    (rows, down), (columns, across) = weights(y), weights(x)
    return rows, columns, np.clip(down @ glyph @ across.T * 1.2, 0, 1)


def _glyph(digit: int, split: str, rng: np.random.Generator) -> np.ndarray:
    images, labels = _handwriting()
    first, last = HANDWRITING[split]
    choices = np.flatnonzero(labels[first:last] == digit) + first
    return images[rng.choice(choices)]


@functools.cache
def _handwriting() -> tuple[np.ndarray, np.ndarray]:
    """8 x 8 pictures in [0,1] and what they show."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    return np.asarray(pixels).reshape(-1, 8, 8) / 16.0, np.asarray(digits)


def _distractor(size: int, rng: np.random.Generator) -> np.ndarray:
    """A frame that shows no digit: a coarse pattern of random colours."""
    return np.kron(rng.uniform(0, 200, (4, 4, 3)), np.ones((-(-size // 4), -(-size // 4), 1)))[:size, :size]
