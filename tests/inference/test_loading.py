"""What loading decides before a weight is read."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from dmae.inference import loading
from dmae.inference.adapters import _base_model
from dmae.inference.loading import computes_bfloat16, dtype_of


@pytest.mark.parametrize(
    ("flags", "native"),
    [("fpu avx2 avx512f", False), ("fpu avx512_bf16", True), ("amx_bf16 amx_tile", True), (None, False)],
)
def test_bfloat16_only_where_the_cpu_computes_it(tmp_path, monkeypatch, flags, native):
    path = tmp_path / "cpuinfo"
    if flags is not None:
        path.write_text(f"processor : 0\nflags : {flags}\n")
    assert computes_bfloat16(path) is native
    monkeypatch.setattr(loading, "computes_bfloat16", lambda: native)
    assert dtype_of("auto", "cpu") is (torch.bfloat16 if native else torch.float32)
    assert dtype_of("auto", "cuda:0") is torch.bfloat16 and dtype_of("float32", "cpu") is torch.float32


def test_the_model_below_an_adapter_has_the_settings_it_was_trained_with(tmp_path, make_model):
    """Its base is a CLIP checkpoint, which brings the towers and knows nothing of the rest."""
    config = make_model(interaction="wti", max_frames=5, partial_margin=0.3).config
    towers = {"text_config": config.text_config.to_dict(), "vision_config": config.vision_config.to_dict()}
    clip = CLIPConfig(**towers, projection_dim=config.projection_dim)
    CLIPModel(clip).save_pretrained(tmp_path / "clip")
    below = _base_model(str(tmp_path / "clip"), config, {})
    assert (below.config.interaction, below.config.max_frames, below.config.partial_margin) == ("wti", 5, 0.3)
    tower = CLIPModel.from_pretrained(tmp_path / "clip").vision_model.embeddings.patch_embedding.weight
    torch.testing.assert_close(below.vision_model.embeddings.patch_embedding.weight, tower)
