"""loka.pffn: against the block written out with modules in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import loka_compile as loka


def written_out(q, k, v, scale):
    """One sample: q (T, H, D); k, v (H, N, D)."""
    heads, width = q.shape[1:]
    ln = F.layer_norm(q.flatten(1), [heads * width]).view_as(q)
    attended = torch.stack([F.gelu(ln[:, h] @ k[h].T) * scale @ v[h] for h in range(heads)], 1)
    z = attended + ln
    return F.rms_norm(z.flatten(1), [heads * width], eps=1e-5).view_as(q) + q


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_against_modules(dtype):
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2}[dtype]
    torch.manual_seed(0)
    q = torch.randn(12, 3, 8).to(dtype)
    k, v = (torch.randn(3, 3, 5, 8).to(dtype) for _ in range(2))
    lengths = [4, 0, 8]
    cu_seqlens = torch.tensor([0, 4, 4, 12])
    out = loka.pffn(q, k, v, scale=0.25, cu_seqlens_q=cu_seqlens)
    each = zip(q.double().split(lengths), k.double(), v.double(), strict=True)
    expected = torch.cat([written_out(*sample, 0.25) for sample in each])
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    dense = loka.pffn(q[None, 4:].transpose(1, 2), k[2:], v[2:], scale=0.25)
    torch.testing.assert_close(dense[0].transpose(0, 1).double(), expected[4:], rtol=tolerance, atol=tolerance)


def test_gradcheck():
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, 2, n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 3, 3))
    assert torch.autograd.gradcheck(lambda *qkv: loka.pffn(*qkv, activation="silu"), (q, k, v))
