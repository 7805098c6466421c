"""A missing extra is named, with its remedy, before a command has done anything."""

import runpy
from importlib.metadata import requires
from pathlib import Path
from unittest import mock

import pytest
from typer.testing import CliRunner

from dmae import extras
from dmae.cli import app

ROOT = Path(__file__).resolve().parents[2]


def test_an_extra_lists_what_setup_gives_it():
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    for name in ("train", "search", "ui"):
        expected = [package.split("[")[0] for package in setup.call_args.kwargs["extras_require"][name]]
        assert sorted(extras.packages(name)) == sorted(expected) != []


def test_what_is_installed_is_not_asked_for():
    assert requires("dmae")
    extras.require("train", "search")


def test_every_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(extras, "installed", lambda name: name not in ("accelerate", "faiss-cpu"))
    with pytest.raises(ImportError) as error:
        extras.require("train", "search")
    assert str(error.value) == "this needs accelerate, faiss-cpu; install them: pip install 'dmae[train,search]'"


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["demo", "--output-dir", "{}/out"], "accelerate"),
        (["evaluate", "--model", "m", "--dataset", "d"], "accelerate"),
        (["prepare", "videofolder", "--videos", "{}/videos", "-o", "{}/out"], "datasets"),
        (["push", "{}/model", "--repo-id", "a/b"], "huggingface_hub"),
        (["index", "{}/videos", "-o", "{}/out", "--backend", "faiss"], "faiss-cpu"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_commands_ask_before_they_work(tmp_path, monkeypatch, arguments, absent):
    """`demo` once rendered for two minutes and then missed accelerate; the videos named here do not even exist."""
    monkeypatch.setattr(extras, "installed", lambda name: name != absent)
    result = CliRunner().invoke(app, [argument.format(tmp_path) for argument in arguments])
    assert result.exit_code == 1 and f"this needs {absent}; install them" in result.stderr
    assert list(tmp_path.iterdir()) == []
