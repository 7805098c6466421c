"""`weights_hash` names what scores depend on: no two models that score differently share it."""

import inspect
import json
import os
import subprocess
import sys

import pytest
import torch

from dmae import DMAEConfig, DMAEForTextVideoRetrieval
from dmae.inference import identity
from dmae.inference.identity import SCORED, weights_hash

OTHER = {
    "interaction": "ti",
    "similarity_form": "pooled",
    "text_granularity": "words",
    "word_weighting": "linear",
    "textual_attention": False,
    "visual_attention": False,
    "visual_top_k": 3,
    "visual_scale": "unit",
    "temporal_input": "patch",
    "patches_per_frame": 1,
    "max_words": 8,
    "max_frames": 3,
    "merge_tokens": 1,
}
# What a trained model's scores do not depend on: losses, initial values, and sizes that the weights' shapes show.
NOT_SCORED = {
    "text_config", "vision_config", "projection_dim", "logit_scale_init_value", "content_weight", "irrelevant_words",
    "temporal_layers", "temporal_init", "loss", "positive_weight", "negative_weight", "negative_margin",
    "mask_duplicates", "partial_order", "partial_margin", "mask_ratio", "partial_weight", "mask_gradient",
    "tpm_includes_eos", "margin_schedule", "partial_margin_start", "initializer_range",
}  # fmt: skip


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return DMAEForTextVideoRetrieval(DMAEConfig.tiny(interaction="wti"))


def test_every_setting_is_judged():
    """A new configuration field must be put on one of the two sides."""
    undecided = set(DMAEConfig.field_names()) - set(SCORED) - NOT_SCORED
    assert not undecided, (
        f"does a score depend on {undecided}? then add it to SCORED in {inspect.getfile(weights_hash)}"
    )
    assert set(OTHER) == set(SCORED)


@pytest.mark.parametrize("name", SCORED)
def test_equal_weights_with_another_switch_are_another_model(tiny, name):
    before = weights_hash(tiny)
    setattr(tiny.config, name, OTHER[name])
    assert weights_hash(tiny) != before


def test_a_later_field_leaves_the_hash_of_older_models_as_it_was(tiny, monkeypatch):
    """An index made before the field was there goes on working."""
    now = weights_hash(tiny)
    monkeypatch.setattr(identity, "SCORED", tuple(name for name in SCORED if name != "visual_scale"))
    assert weights_hash(tiny) == now


TOWERS = [("text_config", "hidden_act", "gelu"), ("vision_config", "layer_norm_eps", 0.1)]


@pytest.mark.parametrize("side, name, value", TOWERS)
def test_towers_that_compute_differently_are_another_model(tiny, side, name, value):
    before = weights_hash(tiny)
    setattr(getattr(tiny.config, side), name, value)
    assert weights_hash(tiny) != before


def test_what_only_training_uses_does_not_count(tiny):
    before = weights_hash(tiny)
    tiny.config.partial_margin = 0.1
    with torch.no_grad():
        tiny.logit_scale.fill_(1.0)
        next(tiny.text_predictor.parameters()).fill_(7.0)
    assert weights_hash(tiny) == before


def test_one_changed_weight_counts(tiny):
    before = weights_hash(tiny)
    with torch.no_grad():
        tiny.visual_projection.weight[0, 0] += 1.0
    assert weights_hash(tiny) != before


def test_saved_loaded_and_in_another_process_it_is_the_same(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    code = (
        "import json, sys; from dmae import DMAEForTextVideoRetrieval as M; from dmae.inference.identity import "
        "weights_hash; print(json.dumps(weights_hash(M.from_pretrained(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    assert json.loads(done.stdout.strip().splitlines()[-1]) == weights_hash(tiny)
