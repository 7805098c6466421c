"""What MovingDigits shows: scenes of moving digits, drawn by chance, and their near misses."""

from dataclasses import dataclass, replace

import numpy as np

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
TRIES = 2000  # draws of an unused scene before the parameters are called too narrow


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


def random_scene(corpus: Corpus, rng: np.random.Generator) -> Scene:
    """A scene of one to three digits, all different, so that a caption's parts can be told apart."""
    count = 1 + int(rng.choice(len(corpus.actors), p=corpus.actors))
    colours = rng.choice(list(COLOURS)[: corpus.colours], count, replace=False)
    digits = rng.choice(corpus.digits, count, replace=False)
    actors = tuple(Actor(str(c), int(d), str(rng.choice(MOTIONS))) for c, d in zip(colours, digits))
    together = count > 1 and rng.random() < corpus.together
    return Scene(actors, "together" if together else "sequence")


def near_miss_group(corpus: Corpus, rng: np.random.Generator, seen: set) -> list[tuple[str, Scene]]:
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
        moved = sum(a != b for a, b in zip(one.actors, other.actors))
        return "order" if moved == 2 else None
    names = [
        name
        for a, b in zip(one.actors, other.actors)
        for name in ("colour", "digit", "motion")
        if getattr(a, name) != getattr(b, name)
    ]
    return names[0] if len(names) == 1 else None
