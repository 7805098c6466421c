"""Fixtures that the training tests share."""

import importlib.util
from pathlib import Path

import pytest

from dmae.data.miniature import Miniature, make_miniature


@pytest.fixture(scope="session")
def miniature(tmp_path_factory):
    """`miniature(name)` -> (name, annotations, videos): a generated dataset in its true format, made once."""
    made: dict[str, Miniature] = {}

    def make(name: str) -> Miniature:
        if name not in made:
            made[name] = make_miniature(name, tmp_path_factory.mktemp(name) / "data")
        return made[name]

    return make


@pytest.fixture(scope="session")
def tiny():
    """The helpers in `tiny_runs.py` (tests are no package, so it is loaded by path)."""
    spec = importlib.util.spec_from_file_location("tiny_runs", Path(__file__).with_name("tiny_runs.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
