"""Saving, loading, and remote code in a process that does not know this package."""

import os
import subprocess
import sys

import pytest
import torch

from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval


def test_save_and_load(tmp_path, tiny_batch, tiny_model):
    model = tiny_model(interaction="wti", temporal_init="random", max_frames=4)
    model.save_pretrained(tmp_path)
    again = DMAEForTextVideoRetrieval.from_pretrained(tmp_path)
    plain = [name for name in DMAEConfig.field_names() if name not in ("text_config", "vision_config")]
    assert [getattr(again.config, name) for name in plain] == [getattr(model.config, name) for name in plain]
    torch.testing.assert_close(again(**tiny_batch).loss, model(**tiny_batch).loss, rtol=0, atol=0)


@pytest.mark.slow
def test_remote_code_in_a_fresh_process(tmp_path, tiny_batch, tiny_model):
    """What AutoModel loads from a saved folder is whole: no import of this package, the same numbers."""
    DMAEConfig.register_for_auto_class()
    DMAEForTextVideoRetrieval.register_for_auto_class("AutoModel")
    model = tiny_model(interaction="wti")
    model.save_pretrained(tmp_path / "model")
    torch.save((tiny_batch, model(**tiny_batch).logits_per_text.detach()), tmp_path / "batch.pt")
    code = f"""
import sys, torch
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
try:
    import dmae; raise SystemExit("the package can be imported")
except ImportError: pass
from transformers import AutoModel
model = AutoModel.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True)
batch, expected = torch.load({str(tmp_path / "batch.pt")!r})
assert "transformers_modules" in type(model).__module__
torch.testing.assert_close(model(**batch).logits_per_text, expected)
print("same")
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith("same")
