"""Kunlun's PFFN block: generalized dot-product attention with the norms and residuals it is deployed with.

    ln  = LayerNorm(q)                              over a token's H * D values, without affine
    z   = act(ln k^T) v + ln                        by head: loka::gdpa
    out = RMSNorm(z) + q                            over a token's H * D values, without affine

A token feed-forward whose two weight matrices are k and v, made for each sample. Composed: gdpa is one kernel on a GPU;
the norms and residuals are plain operations, which torch.compile makes one kernel before it and one after.
Source: Kunlun and the fused normalization blog (papers.md 2.2.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loka_compile.kernels.gdpa import gdpa


def pffn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    activation: str | Sequence[str] = "gelu",
    scale: float = 1.0,
    scale_inside: bool = False,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """The PFFN block; see the module's docstring. Operands as loka.gdpa takes them; out as q. Norms are of float32."""
    wide = q.to(torch.promote_types(q.dtype, torch.float32))
    centred = wide - wide.mean((1, -1), keepdim=True)
    ln = centred * torch.rsqrt(centred.square().mean((1, -1), keepdim=True) + eps)
    attended = gdpa(
        ln.to(q.dtype), k, v, activation=activation, scale=scale, scale_inside=scale_inside,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k,
    )  # fmt: skip
    z = attended.to(wide.dtype) + ln
    return (z * torch.rsqrt(z.square().mean((1, -1), keepdim=True) + eps) + wide).to(q.dtype)
