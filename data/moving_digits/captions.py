"""Captions of MovingDigits scenes: the facts in varied wording, with filler."""

import numpy as np

from dmae.data.rendering import distinct

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VERBS = {
    "left": ("slides to the left", "moves left", "drifts to the left", "goes left"),
    "right": ("slides to the right", "moves right", "drifts to the right", "goes right"),
    "up": ("moves up", "rises", "floats upward", "climbs up"),
    "down": ("moves down", "falls", "sinks downward", "drops down"),
    "growing": ("grows", "gets bigger", "becomes larger", "expands"),
    "shrinking": ("shrinks", "gets smaller", "becomes smaller", "contracts"),
    "still": ("stays still", "does not move", "stands still", "rests in place"),
}
NOUNS = ("{colour} number {number}", "{colour} digit {number}")
OPENINGS = (
    "in this clip ",
    "we can see that ",
    "the video shows how ",
    "here ",
    "in the video ",
    "on a dark screen ",
)
THEN = (" and then ", ", then ", ", after that ", " followed by the moment when ")
WHILE = (" while ", " and at the same time ", " as ")


def write_captions(scene, rng: np.random.Generator, count: int, filler: float) -> list[str]:
    """`count` different captions of a scene. A sequence is told in order; digits shown together in any order. All that
    a scene's key holds is told, so scenes of other keys have other captions.

    filler: the chance that a caption opens with words that say nothing, and that a digit is called one.
    """
    return distinct(lambda: _caption(scene, rng, filler), count)


def _caption(scene, rng: np.random.Generator, filler: float) -> str:
    actors = list(scene.actors)
    if scene.arrangement == "together":
        actors = [actors[i] for i in rng.permutation(len(actors))]
    joints = THEN if scene.arrangement == "sequence" else WHILE
    opening = str(rng.choice(OPENINGS)) if rng.random() < filler else ""
    text = opening + _clause(actors[0], rng, filler)
    for actor in actors[1:]:
        text += str(rng.choice(joints)) + _clause(actor, rng, filler)
    return text


def _clause(actor, rng: np.random.Generator, filler: float) -> str:
    form = str(rng.choice(NOUNS)) if rng.random() < filler else "{colour} {number}"
    noun = form.format(colour=actor.colour, number=NUMBERS[actor.digit])
    article = "an" if noun[0] in "aeiou" else "a"
    return f"{article} {noun} {rng.choice(VERBS[actor.motion])}"
