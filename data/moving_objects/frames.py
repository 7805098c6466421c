"""How MovingObjects draws a scene: glyphs in pose, colour, texture and light, over backgrounds that say nothing."""

import functools
from dataclasses import dataclass

import numpy as np

from dmae.data.moving_objects.scenes import Scene, Shot, Thing, World
from dmae.data.moving_objects.vocabulary import COLOURS, OBJECTS

GLYPH = 48  # pixels of a stored glyph's side
SLOTS = 6  # a clip's time in parts: a shot or a title card takes whole ones
FREEZE_AT = 1 / 3
LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"


@dataclass(frozen=True)
class Segment:
    """A stretch of a clip, in slots. `shot` is the shot's index in the scene, or None for a title card."""

    first: int
    last: int
    shot: int | None


def scene_frames(scene: Scene, world: World, seed: list[int], count: int | None = None, size: int = 0) -> np.ndarray:
    """`count` evenly spaced frames of a clip (default: all), (count, size, size, 3) uint8.

    seed: integers that fix pose, light, backgrounds and cards. The same seed gives the same clip at any count, but
    for the pixel noise.
    """
    rng = np.random.default_rng([*seed, 11])
    size, count = size or world.size, count or round(world.seconds * world.fps)
    segments = timeline(scene, world, rng)
    painters = [
        _title_card(size, rng) if part.shot is None else _shot_painter(scene.shots[part.shot], world, size, rng)
        for part in segments
    ]
    frames = np.empty((count, size, size, 3))
    for index, at in enumerate((np.arange(count) + 0.5) / count * SLOTS):
        part, paint = next((p, paint) for p, paint in zip(segments, painters) if at < p.last)
        frames[index] = paint((at - part.first) / (part.last - part.first))
    frames += rng.normal(0, world.noise, frames.shape)
    return frames.clip(0, 255).astype(np.uint8)


def timeline(scene: Scene, world: World, rng: np.random.Generator) -> list[Segment]:
    """Shots in order, title cards anywhere between them; `world.irrelevant` of the slots are cards, on average."""
    shots = len(scene.shots)
    if shots > SLOTS:
        raise ValueError(f"a clip has room for {SLOTS} shots, not {shots}")
    cards = min(int(world.irrelevant * SLOTS + rng.random()), SLOTS - shots)
    lengths = np.full(shots, (SLOTS - cards) // shots)
    lengths[rng.permutation(shots)[: (SLOTS - cards) % shots]] += 1
    parts = [(shot + 0.5, shot, int(length)) for shot, length in enumerate(lengths)]
    parts += [(float(rng.integers(shots + 1)), None, 1) for _ in range(cards)]
    segments, at = [], 0
    for _, shot, length in sorted(parts, key=lambda part: part[0]):
        segments.append(Segment(at, at + length, shot))
        at += length
    return segments


def _shot_painter(shot: Shot, world: World, size: int, rng: np.random.Generator):
    """A function of the time within the shot, 0 to 1, that gives its picture (size, size, 3) in floats."""
    background, light = _background(size, rng), _light(size, rng)
    frozen = rng.random() < world.frozen
    actors = [
        _actor(thing, _centre(shot, k, world, rng), len(shot.things), world, rng) for k, thing in enumerate(shot.things)
    ]

    def paint(time: float) -> np.ndarray:
        picture = background.copy()
        for actor in actors:
            actor(picture, min(time / FREEZE_AT, 1.0) if frozen else time)
        return picture * light

    return paint


def _centre(shot: Shot, place: int, world: World, rng: np.random.Generator) -> np.ndarray:
    """Where a thing's path has its middle, (x, y) as shares of the picture."""
    spread = world.pose * rng.uniform(-0.06, 0.06, 2)
    if shot.layout is None:
        return 0.5 + spread
    along = 0.27 if place == 0 else 0.73
    return np.array([along, 0.5] if shot.layout == "row" else [0.5, along]) + spread


def _actor(thing: Thing, centre: np.ndarray, things: int, world: World, rng: np.random.Generator):
    """A function (picture, time) that paints one thing into the picture."""
    colour = np.array(COLOURS[thing.colour]) * rng.uniform(0.8, 1.0) + rng.uniform(-12, 12, 3)
    side = (0.6 if things == 1 else 0.44) * (1 + world.pose * rng.uniform(-0.12, 0.12))
    tilt = world.pose * rng.uniform(-0.35, 0.35)
    glyph, shade = _glyph(thing.noun), _texture(thing.texture, rng)
    travel = 0.32 if things == 1 else 0.24
    turn = rng.choice([-1, 1]) * np.pi * 1.2

    def paint(picture: np.ndarray, time: float) -> None:
        t = time - 0.5
        step = {"left": (-t, 0), "right": (t, 0), "up": (0, -t), "down": (0, t)}.get(thing.motion, (0, 0))
        scale = {"growing": 1 + 0.9 * t, "shrinking": 1 - 0.9 * t}.get(thing.motion, 1.0)
        angle = tilt + (turn * t if thing.motion == "spinning" else 0.0)
        _paste(picture, glyph, shade, colour, centre + np.multiply(step, travel), side * scale, angle)

    return paint


def _paste(picture, glyph, shade, colour, centre, side: float, angle: float) -> None:
    """Blend a glyph (GLYPH, GLYPH) over the picture in place: bilinear, centred, rotated and scaled."""
    from scipy.ndimage import map_coordinates

    size = len(picture)
    reach = side * size * 0.75 + 1
    x0, y0 = np.maximum(np.floor(centre * size - reach).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(centre * size + reach).astype(int), size)
    if x0 >= x1 or y0 >= y1:
        return
    y, x = np.mgrid[y0:y1, x0:x1] + 0.5
    x, y = (x - centre[0] * size) / (side * size), (y - centre[1] * size) / (side * size)
    cos, sin = np.cos(angle), np.sin(angle)
    places = np.stack([(-sin * x + cos * y + 0.5) * GLYPH - 0.5, (cos * x + sin * y + 0.5) * GLYPH - 0.5])
    alpha = map_coordinates(glyph, places, order=1)[..., None]
    tone = 1.0 if shade is None else map_coordinates(shade, places, order=1, mode="nearest")[..., None]
    part = picture[y0:y1, x0:x1]
    part += alpha * (tone * colour - part)


@functools.cache
def _glyph(noun: str) -> np.ndarray:
    return _letter_mask(chr(OBJECTS[noun]))


@functools.cache
def _letter_mask(letter: str) -> np.ndarray:
    """One character of DejaVu Sans as an opacity map (GLYPH, GLYPH), its longer side filled."""
    from PIL import Image, ImageDraw

    font = _font()
    left, top, right, bottom = font.getbbox(letter)
    image = Image.new("L", (round(right - left), round(bottom - top)), 0)
    ImageDraw.Draw(image).text((-left, -top), letter, font=font, fill=255, stroke_width=2)
    scale = GLYPH / max(image.size)
    image = image.resize([max(1, round(scale * side)) for side in image.size], Image.Resampling.LANCZOS)
    square = Image.new("L", (GLYPH, GLYPH), 0)
    square.paste(image, ((GLYPH - image.width) // 2, (GLYPH - image.height) // 2))
    return np.asarray(square, dtype=float) / 255


@functools.cache
def _font():
    import os

    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 96)


def _texture(texture: str, rng: np.random.Generator) -> np.ndarray | None:
    """How bright a glyph is at each of its places, (GLYPH, GLYPH): bars or dots; None where it is plain."""
    y, x = np.mgrid[:GLYPH, :GLYPH] / GLYPH
    phase, waves = rng.uniform(0, 2 * np.pi, 2), rng.uniform(4.0, 5.0)
    if texture == "striped":
        return np.where(np.sin(2 * np.pi * waves * y + phase[0]) > 0, 1.0, 0.3)
    if texture == "spotted":
        dots = np.sin(2 * np.pi * waves * y + phase[0]) * np.sin(2 * np.pi * waves * x + phase[1])
        return np.where(dots > 0.25, 0.2, 1.0)
    return None


def _background(size: int, rng: np.random.Generator) -> np.ndarray:
    """A soft gradient between two dark colours with coarse stains, (size, size, 3)."""
    one, other = rng.uniform(10, 95, (2, 3))
    across = np.linspace(0, 1, size)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (np.cos(angle) * across[:, None] + np.sin(angle) * across[None]) / 2 + 0.5
    stains = np.kron(rng.normal(0, 7, (4, 4, 3)), np.ones((-(-size // 4), -(-size // 4), 1)))[:size, :size]
    return one + (other - one) * ramp[..., None] + stains


def _light(size: int, rng: np.random.Generator) -> np.ndarray:
    """How much light falls where, (size, size, 1): a level, and a direction it comes from."""
    level, slope = rng.uniform(0.75, 1.15), rng.uniform(-0.25, 0.25, 2)
    across = np.linspace(-0.5, 0.5, size)
    return (level + slope[0] * across[:, None] + slope[1] * across[None])[..., None]


def _title_card(size: int, rng: np.random.Generator):
    """A picture of letters that no caption mentions; it does not move."""
    picture = _background(size, rng)
    for place in (0.22, 0.5, 0.78):
        letter = _letter_mask(LETTERS[rng.integers(len(LETTERS))])
        _paste(picture, letter, None, rng.uniform(120, 240, 3), np.array([place, 0.5]), 0.26, 0.0)
    return lambda time: picture
