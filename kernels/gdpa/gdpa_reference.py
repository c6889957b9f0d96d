"""The specification of loka::gdpa in plain torch: the tests' oracle, and what runs without a kernel.

Sums and scores are in float32 (for float64 operands in float64). Jagged operands are padded with zeros. Zeros give
scores of 0, every activation maps 0 to 0, so padding adds nothing.

The trick for a narrow window: with blocks of `window` rows, a block of queries meets three blocks of keys, however long
the sequence is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from loka_compile import compat

aten = torch.ops.aten
LEAK = 0.01
"""The slope of leaky_relu below 0."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_approx": lambda s: F.gelu(s, approximate="tanh"),
    "relu": F.relu,
    "relu_squared": lambda s: F.relu(s).square(),
    "leaky_relu": lambda s: F.leaky_relu(s, LEAK),
    "silu": F.silu,
    "hard_swish": F.hardswish,
    "identity": lambda s: s,
}
"""Functions by name; each maps 0 to 0."""

GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": lambda g, s: aten.gelu_backward(g, s),
    "gelu_approx": lambda g, s: aten.gelu_backward(g, s, approximate="tanh"),
    "relu": lambda g, s: aten.threshold_backward(g, s, 0),
    "relu_squared": lambda g, s: aten.threshold_backward(g * 2 * F.relu(s), s, 0),
    "leaky_relu": lambda g, s: aten.leaky_relu_backward(g, s, LEAK, False),
    "silu": lambda g, s: aten.silu_backward(g, s),
    "hard_swish": lambda g, s: aten.hardswish_backward(g, s),
    "identity": lambda g, s: g,
}
"""By name: (gradient of the activation's output, score) -> gradient of the score."""


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    activation: str,
    scale: float,
    scale_inside: bool,
    window: int,
) -> Tensor:
    """Arguments as in loka::gdpa; differentiable."""
    left = padded(widened(q), cu_seqlens_q, max_seqlen_q)
    keys, values = (padded(widened(each), cu_seqlens_k, max_seqlen_k) for each in (k, v))
    out = attend(left, keys, values, activation, scale, scale_inside, window)
    return packed(out, cu_seqlens_q, q.shape[0]).to(q.dtype)


def reference_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    activation: str,
    scale: float,
    scale_inside: bool,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) by the formulas that the kernels compute."""
    g, left = (padded(widened(each), cu_seqlens_q, max_seqlen_q) for each in (grad, q))
    keys, values = (padded(widened(each), cu_seqlens_k, max_seqlen_k) for each in (k, v))
    scores = left @ keys.mT * (scale if scale_inside else 1.0)
    inside = within(scores.shape[-2], scores.shape[-1], window, scores.device)
    scores = scores if inside is None else torch.where(inside, scores, 0.0)
    outer = 1.0 if scale_inside else scale
    dv = (ACTIVATIONS[activation](scores) * outer).mT @ g
    ds = GRADIENTS[activation](g @ values.mT, scores) * scale
    ds = ds if inside is None else torch.where(inside, ds, 0.0)
    dq = packed(ds @ keys, cu_seqlens_q, q.shape[0])
    dk, dv = (packed(each, cu_seqlens_k, k.shape[0]) for each in (ds.mT @ left, dv))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, activation: str, scale: float, scale_inside: bool, window: int) -> Tensor:
    """Dense attention: q (B, H, Tq, D), k and v (B, H, Tk, D) -> (B, H, Tq, D)."""
    act = ACTIVATIONS[activation]
    q = q * scale if scale_inside else q
    block = max(window, 16)
    if window >= 0 and compat.guard_free(3 * block < k.shape[-2]):
        out = _banded(q, k, v, act, window, block)
    else:
        scores = q @ k.mT
        inside = within(scores.shape[-2], scores.shape[-1], window, q.device)
        out = act(scores if inside is None else torch.where(inside, scores, 0.0)) @ v
    return out if scale_inside else out * scale


def _banded(q: Tensor, k: Tensor, v: Tensor, act: Callable[[Tensor], Tensor], window: int, block: int) -> Tensor:
    """Each block of queries against the blocks of keys before, at and after its own. window <= block."""
    length = q.shape[-2]
    count = (length + block - 1) // block
    q = F.pad(q, (0, 0, 0, count * block - length)).unflatten(-2, (count, block))

    def neighbours(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, block, (count + 1) * block - x.shape[-2])).unflatten(-2, (count + 2, block))
        return torch.cat([x[..., i : i + count, :, :] for i in range(3)], -2)

    query, key = (torch.arange(size, device=q.device) for size in (block, 3 * block))
    inside = (query[:, None] - key[None, :] + block).abs() <= window
    scores = torch.where(inside, q @ neighbours(k).mT, 0.0)
    return (act(scores) @ neighbours(v)).flatten(-3, -2)[..., :length, :]


def within(rows: int, columns: int, window: int, device: torch.device) -> Tensor | None:
    """(rows, columns) True where |i - j| <= window; None without a window (-1)."""
    if window < 0:
        return None
    i, j = (torch.arange(size, device=device) for size in (rows, columns))
    return (i[:, None] - j[None, :]).abs() <= window


def widened(x: Tensor) -> Tensor:
    """x in float32, or float64 if it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def padded(x: Tensor, cu_seqlens: Tensor | None, longest: int) -> Tensor:
    """(total, H, D) -> (B, H, longest, D), with zeros after shorter sequences; a dense tensor stays as it is."""
    if cu_seqlens is None:
        return x
    out = x.new_zeros((cu_seqlens.shape[0] - 1, longest, *x.shape[1:]))
    return out.index_put(_places(cu_seqlens, x.shape[0]), x).transpose(1, 2)


def packed(x: Tensor, cu_seqlens: Tensor | None, total: int) -> Tensor:
    """The inverse of `padded`."""
    return x if cu_seqlens is None else x.transpose(1, 2)[_places(cu_seqlens, total)]


def _places(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """(sequence, position in it) of every row. Indexing fails later if a sequence is longer than `longest`."""
    row = torch.arange(total, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens[1:].to(row.dtype), row, right=True)
    return sequence, row - cu_seqlens[sequence]
