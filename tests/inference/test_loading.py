"""What loading decides before a weight is read."""

import pytest
import torch

from dmae.inference import loading
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
