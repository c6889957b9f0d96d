"""Kunlun's PFFN block: generalized dot-product attention with the norms and residuals it is deployed with.

    ln  = LayerNorm(q)                              over a token's H * D values, without affine
    z   = act(ln k^T) v + ln                        by head: loka::gdpa
    out = RMSNorm(z) + q                            over a token's H * D values, without affine

A token feed-forward whose two weight matrices are k and v, made for each sample. `pffn` is composed: gdpa is one kernel
on a GPU; the norms and residuals are plain operations, which torch.compile makes one kernel before it and one after.

    out = loka::pffn(x, k, v, activation, scale, scale_inside, eps, eps_out)

is all of it in one, in inference, which the pass raise_pffn puts into graphs. x (B, T, H * D), a token's heads side by
side; k, v (B, H, S, D); out as x. eps is LayerNorm's, eps_out RMSNorm's. A GPU's kernel takes 16-bit dtypes and up to
128 keys (`reasons_against`); else the reference.
Source: Kunlun and the fused normalization blog (papers.md 2.2.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loka_compile.kernels import gdpa_pffn_kernel as kernel
from loka_compile.kernels.gdpa import gdpa
from loka_compile.kernels.gdpa_reference import ACTIVATIONS
from loka_compile.kernels.launch import arch_of


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
    eps_out: float | None = None,
) -> Tensor:
    """The PFFN block; see the module's docstring. Operands as loka.gdpa takes them; out as q. Norms are of float32.
    eps_out: RMSNorm's, where it is not LayerNorm's."""
    wide = q.to(torch.promote_types(q.dtype, torch.float32))
    centred = wide - wide.mean((1, -1), keepdim=True)
    ln = centred * torch.rsqrt(centred.square().mean((1, -1), keepdim=True) + eps)
    attended = gdpa(
        ln.to(q.dtype), k, v, activation=activation, scale=scale, scale_inside=scale_inside,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k,
    )  # fmt: skip
    z = attended.to(wide.dtype) + ln
    rstd = torch.rsqrt(z.square().mean((1, -1), keepdim=True) + (eps if eps_out is None else eps_out))
    return (z * rstd + wide).to(q.dtype)


# ---------------------------------------------------------------- the op


def reference(
    x: Tensor, k: Tensor, v: Tensor, activation: str, scale: float, scale_inside: bool, eps: float, eps_out: float
) -> Tensor:
    """The specification of loka::pffn."""
    q = x.unflatten(-1, (k.shape[1], -1)).transpose(1, 2)
    out = pffn(q, k, v, activation=activation, scale=scale, scale_inside=scale_inside, eps=eps, eps_out=eps_out)
    return out.transpose(1, 2).flatten(2)


def check(x: Tensor, k: Tensor, v: Tensor, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"loka::pffn: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    shapes = f"got {x.dtype} {tuple(x.shape)}, {k.dtype} {tuple(k.shape)} and {v.dtype} {tuple(v.shape)}"
    if x.dim() != 3 or k.dim() != 4 or k.shape != v.shape or not x.dtype == k.dtype == v.dtype:
        raise ValueError(f"loka::pffn: x is (B, T, H * D), k and v (B, H, S, D), of one dtype; {shapes}")
    if x.shape[0] != k.shape[0] or x.shape[2] != k.shape[1] * k.shape[3]:
        raise ValueError(f"loka::pffn: x has k's sequences, and tokens of H * D values; {shapes}")


@torch.library.custom_op("loka::pffn", mutates_args=())
def _op(
    x: Tensor, k: Tensor, v: Tensor, activation: str, scale: float, scale_inside: bool, eps: float, eps_out: float
) -> Tensor:
    check(x, k, v, activation)
    rest = activation, scale, scale_inside, eps, eps_out
    if not x.is_cuda or kernel.reasons_against(x, k):
        return reference(x, k, v, *rest).contiguous()
    k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (k, v))
    x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    kernel.launch(x, k, v, out, *rest, arch_of(x)).run()
    return out


@_op.register_fake
def _(
    x: Tensor, k: Tensor, v: Tensor, activation: str, scale: float, scale_inside: bool, eps: float, eps_out: float
) -> Tensor:
    check(x, k, v, activation)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


OP = torch.ops.loka.pffn.default
