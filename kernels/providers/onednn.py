"""onednn: the CPU's quantized linear with its weight packed once (torch.ops.onednn, seen with torch 2.13, oneDNN 3.12).

    out = loka::frozen_onednn(a, weight, transposed, scaling, zero)

a: (M, K), bytes that are not negative.
weight: the parameter, (K, N), or (N, K) with `transposed` (a linear's), quantized to int8 with `scaling`.
out: (M, N) float32, (a - zero) times the weight with its scales applied, without a detour over int32. The rows' scales
    are left to the caller, whose multiplication Inductor fuses with what follows. (So bias and activation cannot ride
    in oneDNN's post-ops: they come after the rows' scales.) The packed weight is kept beside the parameter (frozen.py).

oneDNN takes unsigned activations. It also takes signed ones, but some hundred times slower on some processors. So 128
is added where they are quantized (`shifted`), and oneDNN subtracts it as a zero point, at no cost.

Without VNNI it adds pairs of products in 16 bits, which saturate silently: 255 x 127 over K = 256 gives 0.506 of the
right sum. There it runs only what cannot saturate: weights of 7 bits, 2 x 255 x 64 = 32640 < 2^15; and int8_rowwise for
activations that are not negative, whose bytes end at 127: 2 x 127 x 127 = 32258.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from loka_compile.kernels import frozen
from loka_compile.kernels.op import Op, T, declare
from loka_compile.kernels.providers.base import Behind, Frozen, Provider, is_batch
from loka_compile.kernels.quantize import quantize as quantization
from loka_compile.spec.processor import processor
from loka_compile.spec.recipes import Recipe
from loka_compile.spec.site import Site
from loka_compile.spec.target import Target

MAX_K = (2**31 - 1) // (255 * 127)
"""The longest contraction whose int32 sums cannot overflow."""


class Onednn(Provider):
    name: ClassVar[str] = "onednn"
    speaks: ClassVar[tuple[str, ...]] = ("int8_rowwise", "int8_rowwise_w7", "uint8_rowwise")
    rank: ClassVar[int] = 10

    def reasons_against(self, site: Site, recipe: Recipe, target: Target) -> list[str]:
        reasons = []
        if target.device != "cpu":
            reasons.append("oneDNN runs on CPUs")
        elif not torch.backends.mkldnn.is_available():
            reasons.append("this PyTorch was built without oneDNN")
        else:
            reasons += _inexact(site, recipe)
        if not site.static_rhs:
            reasons.append("its weight is packed once, and this one is not frozen")
        if is_batch(site):
            reasons.append("it takes two matrices, this is a batch")
        if not (site.K.is_number and int(site.K) <= MAX_K):
            reasons.append(f"K = {site.K} can overflow int32 (at most {MAX_K} is safe)")
        return reasons

    def no_use(self, site: Site, recipe: Recipe, target: Target) -> str:
        if target.device != "cpu" or processor().onednn_saturates or recipe.name == "uint8_rowwise":
            return ""
        if recipe.narrow:
            return "sums of products do not saturate with VNNI: int8_rowwise has weights of 8 bits"
        return "no value of the left operand is negative: uint8_rowwise does as well, with less noise"

    def product(
        self, a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype
    ) -> Tensor:
        """The product with a weight that is packed at every call; graphs run it with a frozen one."""
        assert a_scale is not None and b_scale is not None
        packed = torch.ops.onednn.qlinear_prepack(b.mT.contiguous(), None)
        zeros = torch.zeros(b_scale.numel(), dtype=torch.int32, device="cpu")
        zero, step = _zero_and_step(a, a_scale)
        return (linear(a, (packed, b_scale.reshape(-1).contiguous(), zeros), zero) * step).to(out_dtype)

    def frozen(self, weight_dtype: torch.dtype, scaling: str, memory_planned: bool) -> Frozen | None:
        return Frozen("loka.frozen_onednn", functools.partial(_rescaled, scaling))

    def behind(self, recipe: Recipe, dtype: torch.dtype) -> Behind | None:
        return Behind("step", torch.float32, lambda x, step, *_: (x * step).to(dtype))

    def timed(
        self,
        a: Callable[[], Any],
        b: Callable[[], Any],
        scales: tuple[Any, Any],
        out: Callable[[torch.dtype], Any],
        dtype: torch.dtype,
    ) -> Callable[[], Any]:
        packed = pack(b().float(), False, "row")
        return lambda: linear(a(), packed, 0)


PROVIDER = Onednn()


def _inexact(site: Site, recipe: Recipe) -> list[str]:
    """Sums that would saturate on this processor, or bytes that would be misread; [] if the result is exact."""
    if not recipe.unsigned and not (site.lhs.nonnegative and not site.gradient):
        return ["it takes unsigned bytes, and the left operand may have negative values"]
    if recipe.dtype == torch.int8 and recipe.unsigned and not recipe.narrow and processor().onednn_saturates:
        return ["without VNNI oneDNN adds pairs of products in 16 bits, which saturate: weights of 7 bits do not"]
    return []


# ---------------------------------------------------------------- products with a parameter


def pack(weight: Tensor, transposed: bool, scaling: str) -> tuple[Tensor, Tensor, Tensor]:
    """The weight for qlinear_pointwise: (packed, scales (N,) float32, zero points (N,) int32)."""
    right = weight.detach().mT if transposed else weight.detach()
    q, scale = quantization.reference(right, torch.int8, scaling, -2)
    packed = torch.ops.onednn.qlinear_prepack(q.mT.contiguous(), None)
    return packed, scale.reshape(-1), torch.zeros(scale.numel(), dtype=torch.int32, device="cpu")


def linear(a: Tensor, packed: Any, zero: int) -> Tensor:
    """(M, N) float32, without the rows' scales. Signed bytes that are not negative are unsigned bytes as well."""
    weight, scale, zeros = packed
    if not a.numel():
        return a.new_zeros((a.shape[0], len(scale)), dtype=torch.float32)
    rows = a.contiguous().view(torch.uint8)
    return torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, zero, weight, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


def _zero_and_step(a: Any, a_scale: Any) -> tuple[int, Any]:
    return (quantization.SHIFT, a_scale[..., 0]) if a_scale.dim() > a.dim() else (0, a_scale)


def _rescaled(
    scaling: str, a: Any, a_scale: Any, weight: Any, transposed: bool, more: int, out_dtype: torch.dtype
) -> Any:
    zero, step = _zero_and_step(a, a_scale)
    return (frozen_onednn(a, weight, transposed, scaling, zero) * step).to(out_dtype)


@dataclass(frozen=True)
class FrozenOnednn(Op[T, T]):
    """See the module's docstring."""

    name: ClassVar[str] = "frozen_onednn"
    a: T
    weight: T
    transposed: bool
    scaling: str = "row"
    zero: int = 0


def run(call: FrozenOnednn[Tensor]) -> Tensor:
    form = "onednn", call.transposed, call.scaling
    packed = frozen.frozen(call.weight, form, lambda it: pack(it, call.transposed, call.scaling))
    return linear(call.a, packed, call.zero)


def empty(call: FrozenOnednn[Tensor]) -> Tensor:
    n = call.weight.shape[0 if call.transposed else 1]
    return call.a.new_empty((call.a.shape[0], n), dtype=torch.float32)


frozen_onednn = declare(FrozenOnednn, empty, run, gradient="never")
