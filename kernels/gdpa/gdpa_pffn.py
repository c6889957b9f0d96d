"""Kunlun's PFFN block: generalized dot-product attention with the norms and residuals it is deployed with.

    ln  = LayerNorm(q)                              over a token's H * D values, without affine
    z   = act(ln k^T) v + ln                        by head: loka::gdpa
    out = RMSNorm(z) + q                            over a token's H * D values, without affine

It is a token feed-forward network whose two weight matrices, k and v, are made for each sample. `pffn` composes it:
gdpa is one kernel on a GPU, and torch.compile makes one kernel of the plain operations before it and one of those after
it. On a GPU, without gradients and without jagged operands, all of it is one op, which the pass raise_pffn also puts
into graphs:

    out = loka::pffn(x, k, v, activation, scale, scale_inside, eps, eps_out)

x: (B, T, H * D), a token's heads side by side; k, v: (B, H, S, D); out: as x.
eps: LayerNorm's; eps_out: RMSNorm's.
The kernel takes 16-bit dtypes and up to 128 keys (`reasons_against`); otherwise the reference runs.
Source: Kunlun (arXiv 2602.10016) and the fused normalization blog (pytorch.org).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from loka_compile.kernels.gdpa import gdpa_pffn_kernel as kernel
from loka_compile.kernels.gdpa.gdpa import gdpa
from loka_compile.kernels.gdpa.gdpa_reference import ACTIVATIONS
from loka_compile.kernels.launch import arch_of
from loka_compile.kernels.op import Op, T, declare


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
    """Kunlun's PFFN block, RMSNorm(act(ln k^T) v + ln) + q with ln = LayerNorm(q), in q's shape and dtype.

    Operands are those of loka.gdpa. Norms go over a token's H * D values, in float32, without weights.
    eps: LayerNorm's; eps_out: RMSNorm's, None for the same.
    Raises ValueError for other names, shapes and dtypes.
    Details and source: the module's docstring.
    """
    eps_out = eps if eps_out is None else eps_out
    if isinstance(activation, str) and _in_one(q, k, v, cu_seqlens_q, cu_seqlens_k):
        x = _pffn(q.transpose(1, 2).flatten(2), k, v, activation, scale, scale_inside, eps, eps_out)
        return x.unflatten(-1, (q.shape[1], q.shape[3])).transpose(1, 2)
    jagged = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    jagged |= {"max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k}
    return _composed(q, k, v, eps, eps_out, activation=activation, scale=scale, scale_inside=scale_inside, **jagged)


def _composed(q: Tensor, k: Tensor, v: Tensor, eps: float, eps_out: float, **attention: Any) -> Tensor:
    """The norms and residuals in plain operations around gdpa with these arguments."""
    wide = q.to(torch.promote_types(q.dtype, torch.float32))
    centred = wide - wide.mean((1, -1), keepdim=True)
    ln = centred * torch.rsqrt(centred.square().mean((1, -1), keepdim=True) + eps)
    attended = gdpa(ln.to(q.dtype), k, v, **attention)
    z = attended.to(wide.dtype) + ln
    return (z * torch.rsqrt(z.square().mean((1, -1), keepdim=True) + eps_out) + wide).to(q.dtype)


def _in_one(q: Tensor, k: Tensor, v: Tensor, *offsets: Tensor | None) -> bool:
    """Whether loka::pffn's kernel can run: on a GPU, dense operands, no gradient."""
    if not q.is_cuda or any(each is not None for each in offsets) or kernel.reasons_against(q, k):
        return False
    return not (torch.is_grad_enabled() and any(each.requires_grad for each in (q, k, v)))


# ---------------------------------------------------------------- the op


@dataclass(frozen=True)
class Pffn(Op[T, T]):
    """See the module's docstring."""

    name: ClassVar[str] = "pffn"
    x: T
    k: T
    v: T
    activation: str
    scale: float
    scale_inside: bool
    eps: float
    eps_out: float


def reference(
    x: Tensor, k: Tensor, v: Tensor, activation: str, scale: float, scale_inside: bool, eps: float, eps_out: float
) -> Tensor:
    """The specification of loka::pffn."""
    q = x.unflatten(-1, (k.shape[1], -1)).transpose(1, 2)
    out = _composed(q, k, v, eps, eps_out, activation=activation, scale=scale, scale_inside=scale_inside)
    return out.transpose(1, 2).flatten(2)


def check(x: Tensor, k: Tensor, v: Tensor, activation: str) -> None:
    """Raises ValueError if names, shapes or dtypes do not fit together."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"loka::pffn: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    shapes = f"got {x.dtype} {tuple(x.shape)}, {k.dtype} {tuple(k.shape)} and {v.dtype} {tuple(v.shape)}"
    if x.dim() != 3 or k.dim() != 4 or k.shape != v.shape or not x.dtype == k.dtype == v.dtype:
        raise ValueError(f"loka::pffn: x must be (B, T, H * D), k and v (B, H, S, D), all of one dtype; {shapes}")
    if x.shape[0] != k.shape[0] or x.shape[2] != k.shape[1] * k.shape[3]:
        raise ValueError(f"loka::pffn: x must have k's B sequences, and tokens of H * D values; {shapes}")


def run(call: Pffn[Tensor]) -> Tensor:
    x, k, v, *rest = call.args
    check(x, k, v, call.activation)
    if not x.is_cuda or kernel.reasons_against(x, k):
        return reference(x, k, v, *rest).contiguous()
    k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (k, v))
    x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    arguments = x, k, v, out, *rest, arch_of(x)
    kernel.launch(*arguments).run()
    return out


def empty(call: Pffn[Tensor]) -> Tensor:
    check(call.x, call.k, call.v, call.activation)
    return torch.empty_like(call.x, memory_format=torch.contiguous_format)


_pffn = declare(Pffn, empty, run)
