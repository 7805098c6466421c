"""Makes `corpora/`: small worlds of MovingDigits and MovingObjects, and miniature datasets, as this version makes them.

    python tests/golden/make_corpora.py

Studies name a corpus by its arguments alone, so the same arguments must go on giving the same scenes, captions and
pictures. Run it when that is changed on purpose, and give the corpus's manifest another `version` then.

`moving_digits.png` shows handwriting of scikit-learn's `load_digits` (*Optical Recognition of Handwritten Digits*,
E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, CC BY 4.0), coloured and moved; all else is drawn by this
project, under its licence.
"""

import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from dmae.data.miniature import COLOURS, DIRECTIONS, WRITERS, make_miniature
from dmae.data.miniature import Scene as MiniatureScene
from dmae.data.miniature import scene_frames as miniature_frames
from dmae.data.moving_digits import corpus as digits_corpus
from dmae.data.moving_digits.frames import HANDWRITING, scene_frames
from dmae.data.moving_digits.scenes import Actor, Corpus
from dmae.data.moving_digits.scenes import Scene as DigitScene
from dmae.data.moving_objects import frames as drawing
from dmae.data.moving_objects.corpus import corpus_clips
from dmae.data.moving_objects.scenes import Scene, Shot, Thing, World

HERE = Path(__file__).resolve().parent / "corpora"
SHARES = (0.2, 0.4, 0.4)
DIGITS = Corpus(
    train=6, validation_groups=1, test_groups=3, captions=3, filler=0.5, actors=SHARES, together=0.5, size=32,
    digit_size=(0.5, 0.7), jitter=0.1, seconds=(1.0, 1.5), distractors=0.5, colours=6, digits=tuple(range(10)),
)  # fmt: skip
WORLD = World(
    train=12, near_misses=0.7, validation_groups=1, validation_singles=2, test_groups=2, test_singles=2, captions=3,
    filler=0.4, telling=0.6, striped=0.6, shots=(0.3, 0.4, 0.3),
)  # fmt: skip


def digit_rows() -> dict[str, list[dict]]:
    found = {}
    for number, split in enumerate(HANDWRITING):
        rng = np.random.default_rng([5, number])
        found[split] = [row for _, row in digits_corpus._split_rows(split, DIGITS, rng)]
    return found


def object_rows() -> dict[str, list[dict]]:
    return {
        split: [clip.row() | {"seed": list(clip.seed)} for clip in clips]
        for split, clips in corpus_clips(WORLD, seed=5).items()
    }


def digit_pictures() -> np.ndarray:
    """A row of frames for each of five clips: every motion, both arrangements, bursts, noise in the last alone."""

    def actors(*motions):
        return tuple(Actor(c, d, m) for c, d, m in zip(("red", "cyan", "white"), (3, 8, 5), motions))

    quiet = {"size": 32, "noise": 0.0, "seconds": (1.0, 1.5), "digit_size": (0.5, 0.7), "jitter": 0.1}
    clips = [
        (DigitScene(actors("left", "growing", "up")), "train", {"distractors": 0.0}),
        (DigitScene(actors("right", "down", "shrinking"), "together"), "validation", {"distractors": 1.0}),
        (DigitScene(actors("still")), "test", {"distractors": 1.0}),
        (DigitScene(actors("down", "left")), "test", {"distractors": 1.0}),
        (DigitScene(actors("growing")), "train", {"distractors": 0.5, "noise": 9.0}),
    ]
    return _sheet([
        scene_frames(scene, split, Corpus(**(quiet | options)), np.random.default_rng(number))
        for number, (scene, split, options) in enumerate(clips)
    ])  # fmt: skip


def object_pictures() -> np.ndarray:
    """Likewise for six clips: motions, textures, layouts, title cards, frozen shots; noise in the last alone."""

    def shot(layout, *things):
        return Shot(tuple(Thing(*thing) for thing in things), layout)

    one, two = ("cat", "red", "striped", "left"), ("anchor", "green", "spotted", "spinning")
    clips = [
        (
            Scene((shot("row", one, two), shot(None, ("sun", "white", "plain", "up")))),
            {"irrelevant": 0.4, "frozen": 0.5},
        ),
        (
            Scene((shot("column", ("hand", "blue", "plain", "growing"), ("crown", "pink", "striped", "down")),)),
            {"irrelevant": 0.2, "frozen": 0.0},
        ),
        (Scene((shot(None, ("scissors", "yellow", "spotted", "right")),)), {"irrelevant": 0.0, "frozen": 1.0}),
        (Scene((shot(None, ("umbrella", "orange", "plain", "shrinking")),)), {"irrelevant": 0.9, "frozen": 0.0}),
        (Scene((shot(None, ("horse", "purple", "striped", "spinning")),)), {"irrelevant": 0.0, "frozen": 0.0}),
        (Scene((shot(None, ("star", "red", "plain", "still")),)), {"irrelevant": 0.0, "noise": 9.0}),
    ]
    return _sheet([
        drawing.scene_frames(scene, World(**({"noise": 0.0, "pose": 2.0} | options)), [5, number], 7, 32)
        for number, (scene, options) in enumerate(clips)
    ])  # fmt: skip


def miniature_files() -> dict[str, dict]:
    """The annotation files of every miniature, and the names of its videos (the tars' sizes are the encoder's)."""
    found = {}
    for name in WRITERS:
        with tempfile.TemporaryDirectory() as place:
            sizes = {"train": 3, "validation": 2, "test": 2}
            made = make_miniature(name, Path(place) / "new" / "data", sizes, seconds=0.125)
            paths = sorted(path for path in Path(place).rglob("*") if path.is_file())
            found[name] = {str(path.relative_to(made.annotations.parent)): content_of(path) for path in paths}
    return found


def content_of(path: Path):
    if path.suffix in (".jsonl", ".json", ".txt", ".csv"):
        return path.read_bytes().decode("utf-8")
    return pickle.loads(path.read_bytes()) if path.suffix == ".pkl" else "video"


def miniature_pictures() -> np.ndarray:
    """Every direction over three pictures, and the one picture of a clip too short for two."""
    squares = [(MiniatureScene(*words), 0.375) for words in zip(COLOURS, DIRECTIONS)]
    clips = [*squares, (MiniatureScene("white", "right"), 0.01)]
    return _sheet([
        np.stack(list(miniature_frames(scene, seconds, seed, (48, 30)))) for seed, (scene, seconds) in enumerate(clips)
    ])  # fmt: skip


def _sheet(clips: list[np.ndarray]) -> np.ndarray:
    rows = [np.concatenate(list(frames), axis=1) for frames in clips]
    widest = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0))) for row in rows])


MADE = {
    "moving_digits.json": digit_rows, "moving_objects.json": object_rows,
    "miniatures.json": miniature_files,
    "miniatures.png": miniature_pictures,
    "moving_digits.png": digit_pictures, "moving_objects.png": object_pictures,
}  # fmt: skip


def text_of(made: dict) -> str:
    """A row, or a file, a line."""

    def lines(part) -> str:
        if isinstance(part, list):
            return "[\n" + ",\n".join(map(json.dumps, part)) + "\n]"
        return (
            "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(content)}" for name, content in part.items()) + "\n}"
        )

    return "{\n" + ",\n".join(f"{json.dumps(name)}: {lines(part)}" for name, part in made.items()) + "\n}\n"


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for name, make in MADE.items():
        if name.endswith(".json"):
            (HERE / name).write_text(text_of(make()), encoding="utf-8")
        else:
            Image.fromarray(make()).save(HERE / name, optimize=True)
