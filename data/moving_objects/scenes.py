"""What MovingObjects shows: scenes of shots of things, drawn by chance, never twice, and their near misses."""

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from dmae.data.moving_objects.vocabulary import COLOURS, MOTIONS, OBJECTS, RELATIONS, TEXTURES

ATTRIBUTES = ("object", "colour", "texture", "motion", "place", "order")
TRIES = 2000  # draws of an unused scene before the world is called too narrow


@dataclass(frozen=True)
class Thing:
    """One object of a shot."""

    noun: str
    colour: str
    texture: str
    motion: str


@dataclass(frozen=True)
class Shot:
    """One or two things at once. `layout`: the first is left of the second ("row") or above it ("column")."""

    things: tuple[Thing, ...]
    layout: str | None = None


@dataclass(frozen=True)
class Scene:
    """Shots one after the other: all that a caption can tell of a clip. Equal scenes look the same to a reader."""

    shots: tuple[Shot, ...]


@dataclass(frozen=True)
class World:
    """Size and difficulty. The first five numbers are the dials: each turns one premise of the method up or down.

    Attributes:
        filler: chance of each place for words that say nothing (opening, hedges, ending) to be filled.
        irrelevant: share of a clip's time taken by title cards that show nothing of the scene.
        near_misses: share of training videos that come in families of four, which differ in one attribute each.
        shots: shares of scenes with one, two, three, ... shots.
        frozen: share of shots whose motion ends after a third, so that the later frames are near duplicates.
        pairs: share of shots with two things.
        telling: chance that a caption tells each thing and each attribute it might tell; the rest is left out.
        striped: share of things that are striped or spotted.
        pose: how much tilt, size and place vary; 1 is up to 20 degrees, 12 % and 6 % of the picture.
        train, validation_groups, test_groups: training videos; groups of a video and its near misses.
        validation_singles, test_singles: videos without near misses that fill the gallery.
        captions: captions of a training video (validation and test videos have one).
        size: height and width in pixels. seconds, fps: of a clip. noise: sd of the pixel noise, of 255.
    """

    filler: float = 0.4
    irrelevant: float = 0.2
    near_misses: float = 0.25
    shots: tuple[float, ...] = (0.5, 0.5)
    frozen: float = 0.3
    pairs: float = 0.6
    telling: float = 0.75
    striped: float = 0.4
    pose: float = 1.0
    train: int = 1536
    validation_groups: int = 40
    validation_singles: int = 200
    test_groups: int = 100
    test_singles: int = 500
    captions: int = 5
    size: int = 96
    seconds: float = 3.0
    fps: int = 8
    noise: float = 4.0


PRESETS = {
    "study": World(),
    "tiny": World(train=16, validation_groups=2, validation_singles=2, test_groups=3, test_singles=4, size=48),
    "large": World(train=20000, validation_groups=200, test_groups=400, test_singles=2000, shots=(0.3, 0.4, 0.3)),
}


def random_thing(world: World, rng: np.random.Generator, taken: set[str]) -> Thing:
    """A thing whose noun is not in `taken`, which grows."""
    noun = str(rng.choice([name for name in OBJECTS if name not in taken]))
    taken.add(noun)
    texture = str(rng.choice(TEXTURES[1:])) if rng.random() < world.striped else TEXTURES[0]
    return Thing(noun, str(rng.choice(list(COLOURS))), texture, str(rng.choice(list(MOTIONS))))


def random_scene(world: World, rng: np.random.Generator) -> Scene:
    """A scene whose nouns are all different, so that a caption's parts can be told apart."""
    count = 1 + int(rng.choice(len(world.shots), p=world.shots))
    shots, taken = [], set()
    for _ in range(count):
        pair = rng.random() < world.pairs
        things = tuple(random_thing(world, rng, taken) for _ in range(1 + pair))
        shots.append(Shot(things, str(rng.choice(list(RELATIONS))) if pair else None))
    return Scene(tuple(shots))


class Collection:
    """Scenes of which none shows all that another one shows, so that a full caption of one is true of it alone."""

    def __init__(self):
        self.showing: dict[Thing, list[Scene]] = defaultdict(list)

    def add(self, scene: Scene) -> bool:
        """Take a scene in, unless it contains one that is there or is contained in one."""
        things = {thing for shot in scene.shots for thing in shot.things}
        for other in (other for thing in things for other in self.showing[thing]):
            if contains(other, scene) or contains(scene, other):
                return False
        for thing in things:
            self.showing[thing].append(scene)
        return True


def contains(scene: Scene, part: Scene) -> bool:
    """Whether every shot of `part` is shown by `scene` too, in that order."""
    at = 0
    for shot in part.shots:
        while at < len(scene.shots) and not _shows(scene.shots[at], shot):
            at += 1
        if at == len(scene.shots):
            return False
        at += 1
    return True


def _shows(shot: Shot, part: Shot) -> bool:
    return shot == part or (len(part.things) == 1 and part.things[0] in shot.things)


def unused_scene(world: World, rng: np.random.Generator, seen: Collection) -> Scene:
    """A new scene, which goes into `seen`. ValueError where the world has no more of them."""
    for _ in range(TRIES):
        scene = random_scene(world, rng)
        if seen.add(scene):
            return scene
    raise ValueError(f"MovingObjects: {TRIES} draws gave no unused scene; ask for fewer videos")


def near_miss_group(world: World, rng: np.random.Generator, seen: Collection, size: int = 7) -> list[Scene]:
    """A new scene and a near miss per attribute that it allows, `size` scenes at most; all go into `seen`."""
    base = unused_scene(world, rng, seen)
    group = [base]
    for attribute in rng.permutation(possible_changes(base))[: size - 1]:
        for _ in range(TRIES):
            scene = changed(base, str(attribute), rng)
            if seen.add(scene):
                group.append(scene)
                break
    return group


def possible_changes(scene: Scene) -> list[str]:
    """The attributes in which a scene can have a near miss."""
    place = any(len(shot.things) == 2 for shot in scene.shots)
    return [*ATTRIBUTES[:4], *(["place"] if place else []), *(["order"] if len(scene.shots) > 1 else [])]


def changed(scene: Scene, attribute: str, rng: np.random.Generator) -> Scene:
    """`scene` with one attribute of one thing, the places of two things or the order of two shots changed."""
    shots = list(scene.shots)
    if attribute == "order":
        i, j = rng.choice(len(shots), 2, replace=False)
        shots[i], shots[j] = shots[j], shots[i]
        return Scene(tuple(shots))
    fitting = [i for i, shot in enumerate(shots) if attribute != "place" or len(shot.things) == 2]
    i = int(rng.choice(fitting))
    things = list(shots[i].things)
    if attribute == "place":
        things.reverse()
    else:
        k = int(rng.integers(len(things)))
        things[k] = _changed_thing(things[k], attribute, scene, rng)
    shots[i] = replace(shots[i], things=tuple(things))
    return Scene(tuple(shots))


def _changed_thing(thing: Thing, attribute: str, scene: Scene, rng: np.random.Generator) -> Thing:
    field = "noun" if attribute == "object" else attribute
    pool = {"noun": OBJECTS, "colour": COLOURS, "texture": TEXTURES, "motion": MOTIONS}[field]
    taken = {other.noun for shot in scene.shots for other in shot.things} if field == "noun" else set()
    values = [value for value in pool if value not in taken and value != getattr(thing, field)]
    return replace(thing, **{field: str(rng.choice(values))})


def differing_attribute(one: Scene, other: Scene) -> str | None:
    """The one attribute in which two scenes differ, or None where they are equal or differ in more."""
    if len(one.shots) != len(other.shots) or one == other:
        return None
    wrong = [(a, b) for a, b in zip(one.shots, other.shots) if a != b]
    if len(wrong) == 2 and wrong[0] == wrong[1][::-1]:
        return "order"
    if len(wrong) != 1:
        return None
    a, b = wrong[0]
    if a.layout != b.layout or len(a.things) != len(b.things):
        return None
    if a.things == b.things[::-1]:
        return "place"
    names = [
        name
        for left, right in zip(a.things, b.things)
        for name in ("noun", "colour", "texture", "motion")
        if getattr(left, name) != getattr(right, name)
    ]
    return names[0].replace("noun", "object") if len(names) == 1 else None
