"""How well a hit fits: the share of random captions whose best video in this index scores lower.

A score says little by itself (0.27 is good for one model and poor for another). A query about something that the index
does not hold scores like a caption about anything; one that it holds scores above nearly all of them.
"""

import random

import numpy as np

CAPTIONS = 128
WELL = 0.9  # fits well: above nine of ten random captions
SUBJECTS = """
a man|two women|a child|an old couple|a cat|a white horse|a flock of birds|a chef|a surgeon|a football team|
a robot|a train|a red tractor|a sailing boat|a news reader|a cartoon mouse|a drummer|a climber|a crowd|a bee
""".replace("\n", "").split("|")
ACTIONS = """
sleeps|runs|dances|waits|crosses the frame|falls over|explains a diagram|opens a box|plays the violin|sings|
cuts vegetables|paints a wall|jumps into the water|is being repaired|shakes hands|reads aloud|lands|catches fire
""".replace("\n", "").split("|")
PLACES = """
in a kitchen|on a beach|at night|in the snow|on a stage|under water|in an office|on a motorway|in a forest|
in front of a castle|inside a factory|on the moon|in a crowded market|in black and white|seen from above|
""".replace("\n", "").split("|")


def random_captions(count: int = CAPTIONS, seed: int = 0) -> list[str]:
    """Captions about anything, always the same ones."""
    choose = random.Random(seed)
    captions: dict[str, None] = {}
    while len(captions) < count:
        words = (choose.choice(SUBJECTS), choose.choice(ACTIONS), choose.choice(PLACES))
        captions[" ".join(words).strip()] = None
    return list(captions)


def random_best_scores(index) -> np.ndarray:
    """The best score in the index of each random caption, ascending. -> (CAPTIONS,); empty for an empty index."""
    if not len(index):
        return np.empty(0)
    text = index.encode_texts(random_captions())
    return np.sort([hits[0].score for hits in index.search_embeddings(text, top_k=1)])


def fit(score: float, best_scores: np.ndarray) -> float | None:
    """The share of random captions that score below; None while nothing is known."""
    return float(np.searchsorted(best_scores, score) / len(best_scores)) if len(best_scores) else None
