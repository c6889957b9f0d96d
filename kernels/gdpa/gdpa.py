"""loka::gdpa: generalized dot-product attention. An element-wise activation stands where softmax would.

    out = gdpa(q, k, v, activation="gelu", scale=1.0, scale_inside=False, window=None,
               cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None)

    out = (act(q k^T) * scale) v          or, with scale_inside, act(q k^T * scale) v; by head

Dense: q (B, H, Tq, D); k, v (B, H, Tk, D). Jagged q: (total, H, D), the sequences one after the other, with
cu_seqlens_q (B + 1,) in int32 or int64: where each sequence begins, from 0 to the number of rows. Empty sequences are
allowed. k and v likewise with cu_seqlens_k; q may be jagged and k dense, or the other way round.
max_seqlen_*: no sequence is longer. If it is left out it is read from the device, which breaks the graph under
    torch.compile.
out: q's shape and dtype; for a dense q also its strides.

activation: `gelu` (by erf), `gelu_approx` (by tanh), `relu`, `relu_squared`, `leaky_relu` (slope 0.01), `silu`,
    `hard_swish`, `identity`; or a list of them, one for each head.
window: the score of positions i and j of a sequence is 0 if |i - j| > window; None for no window.
dtypes: bfloat16, float16, float32 (and float64); scores and sums are in float32.

On a GPU 16-bit dtypes with heads of up to 128 run in Triton. Otherwise the reference runs in plain operations, which
torch.compile sees and fuses. It has gradients for q, k and v; the kernels' gradients have the same bits every time (no
atomics).
Raises ValueError for other names, shapes and dtypes.
Source: Kunlun's GDPA (arXiv 2602.10016). The scale's place, the window's meaning and the jagged layout are those of
Meta's released kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Generic, NamedTuple

import torch
from torch import Tensor

from loka_compile.kernels.gdpa import gdpa_backward as backward
from loka_compile.kernels.gdpa import gdpa_kernel as forward
from loka_compile.kernels.gdpa.gdpa_reference import ACTIVATIONS, reference, reference_backward
from loka_compile.kernels.launch import arch_of
from loka_compile.kernels.op import Op, T, declare

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def gdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    activation: str | Sequence[str] = "gelu",
    scale: float = 1.0,
    scale_inside: bool = False,
    window: int | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
) -> Tensor:
    """Generalized dot-product attention: act(q k^T) v by head, in q's shape and dtype.

    q: (B, H, Tq, D); k, v: (B, H, Tk, D); or jagged, (total, H, D) with cu_seqlens (B + 1,), where sequences begin.
    activation: one name for all heads, or one a head.
    scale: multiplies the activation's result, or with scale_inside its argument.
    window: positions further apart have a score of 0.
    max_seqlen_q, max_seqlen_k: bounds in rows.
    Raises ValueError for other names, shapes and dtypes. All details and the source: the module's docstring.
    """
    if window is not None and window < 0:
        raise ValueError(f"loka::gdpa: window must be at least 0 (or None), got {window}")
    max_seqlen_q = _longest(q, cu_seqlens_q, max_seqlen_q)
    max_seqlen_k = _longest(k, cu_seqlens_k, max_seqlen_k)
    jagged = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    rest = float(scale), scale_inside, -1 if window is None else window
    if isinstance(activation, str):
        return _attend(q, k, v, *jagged, activation, *rest)
    if q.dim() < 2 or len(activation) != q.shape[1]:
        raise ValueError(
            f"loka::gdpa: expected one activation, or one a head; got {len(activation)} for q {tuple(q.shape)}"
        )
    outs, first = [], 0
    for name, run in groupby(activation):
        heads = slice(first, first + len(list(run)))
        first = heads.stop
        outs.append(_attend(q[:, heads], k[:, heads], v[:, heads], *jagged, name, *rest))
    return torch.cat(outs, 1)


def _attend(*args: Any) -> Tensor:
    call = Gdpa(*args)
    check(call)
    return _gdpa(*args) if call.q.is_cuda else reference(*args)


def _longest(x: Tensor, cu_seqlens: Tensor | None, given: int | None) -> int:
    """The length of the longest sequence, or the bound that was given."""
    if cu_seqlens is None:
        return x.shape[-2]
    if given is not None:
        return given
    return int(cu_seqlens.diff().max()) if cu_seqlens.numel() > 1 else 0


@dataclass(frozen=True)
class Gdpa(Op[T, T]):
    """A call with one activation for all heads. window: -1 for none. The other fields: see the module's docstring."""

    name: ClassVar[str] = "gdpa"
    q: T
    k: T
    v: T
    cu_seqlens_q: T | None
    cu_seqlens_k: T | None
    max_seqlen_q: int
    max_seqlen_k: int
    activation: str
    scale: float
    scale_inside: bool
    window: int


def check(call: Gdpa[Tensor]) -> None:
    """Raises ValueError if the call's names, shapes or dtypes do not fit together."""
    q, k, v, activation = call.q, call.k, call.v, call.activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"loka::gdpa: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if q.dtype not in FLOATS or not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"loka::gdpa: q, k and v must have one float dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    for name, x, offsets in (("q", q, call.cu_seqlens_q), ("k", k, call.cu_seqlens_k)):
        form = "(total, H, D) with" if offsets is not None else "(B, H, T, D) without"
        if x.dim() != (4 if offsets is None else 3):
            raise ValueError(f"loka::gdpa: {name} must be {form} cu_seqlens_{name}, got shape {tuple(x.shape)}")
        if offsets is not None and (offsets.dim() != 1 or offsets.dtype not in (torch.int32, torch.int64)):
            shape = f"{offsets.dtype} of shape {tuple(offsets.shape)}"
            raise ValueError(f"loka::gdpa: cu_seqlens_{name} must be a vector of int32 or int64, got {shape}")
    if k.shape != v.shape or q.shape[1] != k.shape[1] or q.shape[-1] != k.shape[-1]:
        shapes = ", ".join(str(tuple(each.shape)) for each in (q, k, v))
        raise ValueError(f"loka::gdpa: k and v must have one shape, with q's heads and width; got {shapes}")
    left, right = _sequences(q, call.cu_seqlens_q), _sequences(k, call.cu_seqlens_k)
    if left != right:
        raise ValueError(f"loka::gdpa: q has {left} sequences, k and v have {right}; expected as many")


def _sequences(x: Tensor, cu_seqlens: Tensor | None) -> int:
    """The number of sequences."""
    return x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


# ---------------------------------------------------------------- the op


def _rows(x: Tensor) -> Tensor:
    """The tensor with contiguous rows, as the kernels read it. A gradient may be one number, expanded."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _run(call: Gdpa[Tensor]) -> Tensor:
    check(call)
    q, k, v, *rest = call.args
    out = torch.empty_like(q)
    if not (q.is_cuda and forward.supported(q)):
        return out.copy_(reference(q, k, v, *rest))
    arguments = _rows(q), _rows(k), _rows(v), out, *rest, arch_of(q)
    forward.launch(*arguments).run()
    return out


def _empty(call: Gdpa[Tensor]) -> Tensor:
    check(call)
    return torch.empty_like(call.q)


_gdpa = declare(Gdpa, _empty, _run, gradient="own")


class GdpaGradients(NamedTuple, Generic[T]):
    q: T
    k: T
    v: T


@dataclass(frozen=True)
class GdpaBackward(Op[T, GdpaGradients[T]]):
    """grad: the gradient of loka::gdpa's result, in its shape. forward: the call it is the gradient of."""

    name: ClassVar[str] = "gdpa_backward"
    values: ClassVar[Any] = GdpaGradients
    grad: T
    forward: Gdpa[T]


def _run_backward(call: GdpaBackward[Tensor]) -> GdpaGradients[Tensor]:
    grad, q, k, v, *rest = call.args
    grads = _empty_backward(call)
    if not (q.is_cuda and forward.supported(q)):
        for each, value in zip(grads, reference_backward(*call.args), strict=True):
            each.copy_(value)
        return grads
    arguments = _rows(grad), _rows(q), _rows(k), _rows(v), *grads, *rest, arch_of(q)
    for launch in backward.launches(*arguments):
        launch.run()
    return grads


def _empty_backward(call: GdpaBackward[Tensor]) -> GdpaGradients[Tensor]:
    of = call.forward
    return GdpaGradients(*(torch.empty_like(each) for each in (of.q, of.k, of.v)))


declare(GdpaBackward, _empty_backward, _run_backward)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens_k, *ctx.rest = inputs
    ctx.save_for_backward(q, k, v, cu_seqlens_q, cu_seqlens_k)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *GdpaBackward(grad, Gdpa(*ctx.saved_tensors, *ctx.rest))(), *[None] * 8


torch.library.register_autograd("loka::gdpa", _gradients, setup_context=_save)
