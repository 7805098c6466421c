"""The package's own names: imported on first use, all of them listed, any other refused with what there is."""

import importlib

import pytest

import dmae
from dmae.hub_cards import staging
from dmae.processing.frames_dmae import FrameSampler


def test_a_public_name_is_imported_on_first_use_and_kept(monkeypatch):
    monkeypatch.delitem(vars(dmae), "FrameSampler", raising=False)
    assert dmae.FrameSampler is FrameSampler is vars(dmae)["FrameSampler"] and not hasattr(
        FrameSampler, "finish_upload"
    )
    for name, module in dmae._PUBLIC.items():
        assert dmae.__getattr__(name) is getattr(importlib.import_module(module), name), name


def test_what_is_not_public_is_refused_with_what_is():
    names = dmae.__all__
    assert names == ["__version__", *sorted(names[1:])] and {"VideoIndex", "DMAEProcessor"} < set(names)
    with pytest.raises(AttributeError) as raised:
        dmae.VideoIndices  # noqa: B018
    assert str(raised.value) == f"module 'dmae' has no attribute 'VideoIndices'; it has: {', '.join(names)}"
    assert dir(dmae) == sorted(names)


def test_a_model_that_is_pushed_is_given_its_card(monkeypatch):
    """The model is remote code and knows nothing of cards: the package that loads it adds them."""
    told = []
    monkeypatch.setattr(staging, "finish_upload", lambda *given: told.append(given))
    model = dmae.__getattr__("DMAEForTextVideoRetrieval")
    model.finish_upload("the model", "folder", "a/b")
    assert told == [("the model", "folder", "a/b")]
