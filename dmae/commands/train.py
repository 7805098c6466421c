"""`dmae train`: the same code as training/run.py."""

import functools

from dmae.extras import require
from dmae.training import run


@functools.wraps(run.train)
def train(**words) -> None:
    require("train")
    run.train(**words)
