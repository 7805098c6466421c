"""How MovingObjects is told: a caption states some facts of a scene, among words that say nothing.

`draw_facts` chooses what is told, `holds` says whether a scene has it, `say` finds words for it. So it is known of
every caption of which videos it is true, which no collection of real captions can offer.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from dmae.data.moving_objects.scenes import Scene, Shot, Thing
from dmae.data.moving_objects.vocabulary import ENDINGS, HEDGES, JOINTS, MOTIONS, OPENINGS, RELATIONS

TRIES = 200  # draws of a fitting caption before everything is told


class ToldThing(NamedTuple):
    """What is said of a thing; None is not said."""

    noun: str
    colour: str | None
    texture: str | None
    motion: str | None

    def fits(self, thing: Thing) -> bool:
        return self.noun == thing.noun and all(
            told is None or told == shown for told, shown in zip(self[1:], (thing.colour, thing.texture, thing.motion))
        )


class ToldShot(NamedTuple):
    """What is said of a shot; `layout` is None where the places of two things are not said."""

    things: tuple[ToldThing, ...]
    layout: str | None

    def fits(self, shot: Shot) -> bool:
        if self.layout is not None:
            return self.layout == shot.layout and all(t.fits(s) for t, s in zip(self.things, shot.things))
        return all(any(told.fits(shown) for shown in shot.things) for told in self.things)


Facts = tuple[ToldShot, ...]


def holds(facts: Facts, scene: Scene) -> bool:
    """Whether everything told is so, in that order."""
    at = 0
    for told in facts:
        while at < len(scene.shots) and not told.fits(scene.shots[at]):
            at += 1
        if at == len(scene.shots):
            return False
        at += 1
    return True


def draw_facts(scene: Scene, rng: np.random.Generator, telling: float) -> Facts:
    """Some of what is true of a scene: at least one thing of one shot. `telling` 1 tells everything."""
    told = [shot for shot in scene.shots if rng.random() < telling] or [scene.shots[rng.integers(len(scene.shots))]]
    return tuple(_told_shot(shot, rng, telling) for shot in told)


def _told_shot(shot: Shot, rng: np.random.Generator, telling: float) -> ToldShot:
    things = [thing for thing in shot.things if rng.random() < telling] or [shot.things[rng.integers(len(shot.things))]]
    told = tuple(_told_thing(thing, rng, telling) for thing in things)
    return ToldShot(told, shot.layout if len(told) == 2 and rng.random() < telling else None)


def _told_thing(thing: Thing, rng: np.random.Generator, telling: float) -> ToldThing:
    colour, texture, motion = (
        value if rng.random() < telling else None for value in (thing.colour, thing.texture, thing.motion)
    )
    return ToldThing(thing.noun, colour, texture, motion)


class Truth:
    """Which of a split's scenes some facts are true of; looked up by what is told, so thousands of scenes are quick."""

    def __init__(self, scenes: list[Scene]):
        self.scenes = scenes
        self.showing = defaultdict(set)  # (noun, a value of such a thing, or None): the scenes that show it
        for index, scene in enumerate(scenes):
            for thing in (thing for shot in scene.shots for thing in shot.things):
                for value in (None, thing.colour, thing.texture, thing.motion):
                    self.showing[thing.noun, value].add(index)

    def of(self, facts: Facts, among: set[int] | None = None) -> list[int]:
        """The indices of the scenes (None: of all, else of these) in which the facts hold."""
        showing = [self.showing[told.noun, value] for shot in facts for told in shot.things for value in told[1:]]
        possible = set.intersection(*([] if among is None else [among]), *sorted(showing, key=len))
        return sorted(index for index in possible if holds(facts, self.scenes[index]))


def facts_apart(scene: Scene, truth: Truth, among: set[int] | None, rng: np.random.Generator, telling: float) -> Facts:
    """Facts true of `scene` and of no other of the `among` scenes of `truth` (None: of none of them all).

    What is told grows with every failed draw until everything is told, which holds in no other scene of a `Collection`.
    """
    for attempt in range(TRIES):
        facts = draw_facts(scene, rng, telling + (1 - telling) * attempt / (TRIES - 1))
        if len(truth.of(facts, among)) == 1:
            return facts
    raise ValueError(f"another scene shows all of this one: {scene}")


def say(facts: Facts, rng: np.random.Generator, filler: float) -> str:
    """Words for the facts; each place for words that say nothing is filled with chance `filler`."""

    def fill(choices) -> str:
        return str(rng.choice(choices)) if rng.random() < filler else ""

    text = fill(OPENINGS) + _say_shot(facts[0], rng, fill)
    for shot in facts[1:]:
        text += str(rng.choice(JOINTS)) + _say_shot(shot, rng, fill)
    return text + fill(ENDINGS)


def _say_shot(shot: ToldShot, rng: np.random.Generator, fill) -> str:
    things = list(shot.things)
    joint = " and "
    turned = len(things) == 2 and rng.random() < 0.5
    if shot.layout is not None:
        joint = f" {RELATIONS[shot.layout][turned]} "
    if turned:
        things.reverse()
    clauses = []
    for place, thing in enumerate(things):
        motion = f" {rng.choice(MOTIONS[thing.motion])}" if thing.motion else ""
        if motion and place and shot.layout is not None:
            motion = f" that{motion}"
        clauses.append(_noun_phrase(thing, fill) + motion)
    return joint.join(clauses)


def _noun_phrase(thing: ToldThing, fill) -> str:
    words = " ".join(word for word in (thing.texture, thing.colour, thing.noun) if word)
    article = "an" if words[0] in "aeiou" else "a"
    return f"{fill(HEDGES)}{article} {words}"
