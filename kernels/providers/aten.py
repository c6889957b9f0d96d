"""aten: PyTorch's own kernels (`_int_mm`, `_scaled_mm`, 16-bit matmul).

Products with a parameter are operators of ours around them:

    out          = loka::frozen_mm(a, weight, transposed)                   a 16-bit float: (M, N) in a's dtype
    acc, columns = loka::frozen_int_mm(a, weight, transposed, more)         int8: acc (M, N) int32, columns (2, N)

a, weight, transposed and more are those of frozen_gemm.py; frozen_mm takes batches too. Both leave scales and casts to
the caller, which Inductor fuses with what follows. columns, float32: the weight's scales, and the sums of its columns.
An affine left operand's smallest values times these sums are what the integer product lacks.

Inductor calls the integer form with memory it has planned (`.out`) and reuses for the next product. Memory that an op
allocates itself goes back to the system and comes page by page at every call. Inductor cannot plan memory for symbolic
sizes, for which there is any_frozen_int_mm, nor, in its C++ wrapper, for an op with one output such as frozen_mm (seen
with torch 2.13).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple

import torch
from torch import Tensor

from loka_compile import compat
from loka_compile.kernels import frozen
from loka_compile.kernels.gemm.int_mm import goes_by_parts, int_mm, int_mm_into
from loka_compile.kernels.op import Op, T, declare
from loka_compile.kernels.providers.base import Behind, Frozen, Provider, is_batch
from loka_compile.kernels.quantize import quantize as quantization
from loka_compile.kernels.quantize.quantize import INTEGERS, dequantize
from loka_compile.spec.processor import processor
from loka_compile.spec.recipes import RECIPES, Recipe
from loka_compile.spec.site import Site
from loka_compile.spec.target import Target

INT8_MAX_K = (2**31 - 1) // 127**2
UINT8_MAX_K = (2**31 - 1) // (255 * 127)
"""The longest contraction of uint8 whose int32 sums cannot overflow."""
CUDA_INT8_MIN_M = 16


class Aten(Provider):
    name: ClassVar[str] = "aten"
    speaks: ClassVar[tuple[str, ...]] = tuple(name for name, recipe in RECIPES.items() if not recipe.narrow)
    rank: ClassVar[int] = 0
    native: ClassVar[bool] = True

    def multiple(self, recipe: Recipe, target: Target) -> int:
        """CUDA's `_scaled_mm` refuses sizes that the CPU's accepts."""
        return 1 if recipe.scaling == "none" else target.alignment

    def reasons_against(self, site: Site, recipe: Recipe, target: Target) -> list[str]:
        if recipe.scaling == "none":
            return _summed_by_inductor(site, target)
        name = "_int_mm" if recipe.dtype == torch.int8 else "_scaled_mm"
        reasons = []
        if is_batch(site):
            reasons.append(f"{name} takes two matrices, this is a batch of {site.batch}")
        if recipe.scaling == "block":
            reasons.append("_scaled_mm with block scales is not wired in yet")
        longest = UINT8_MAX_K if recipe.unsigned else INT8_MAX_K
        if recipe.dtype == torch.int8 and not (site.K.is_number and int(site.K) <= longest):
            reasons.append(f"K = {site.K} can overflow int32 (at most {longest} is safe)")
        if recipe.unsigned and target.device != "cpu":
            reasons.append("only the CPU's _int_mm takes uint8")
        if recipe.unsigned and not site.static_rhs:
            reasons.append("uint8 goes with a frozen weight only: the fake of _int_mm wants int8")
        if recipe.dtype != torch.int8 and site.K == 1:
            reasons.append("_scaled_mm wants b by columns, and with K = 1 strides do not say which they are")
        small = not (site.M.is_number and site.M > CUDA_INT8_MIN_M)
        if recipe.dtype == torch.int8 and target.device == "cuda" and small:
            reasons.append(f"CUDA's _int_mm wants more than {CUDA_INT8_MIN_M} rows, M = {site.M}")
        return reasons

    def no_use(self, site: Site, recipe: Recipe, target: Target) -> str:
        """By instruction sets. No CPU of today has FP8, yet `_scaled_mm` comes near float32's speed on some."""
        here = processor()
        if target.device != "cpu" or here.architecture != "x86_64":
            return ""
        if recipe.dtype == torch.int8 and (here.int_mm_saturates or not here.fast_int_mm):
            return "without VNNI PyTorch's _int_mm is a plain loop, or takes two products: slower than float32"
        if recipe.scaling == "none" and not here.fast_16_bits:
            return "without AVX-512 PyTorch's 16-bit products take ten times as long as float32's"
        return ""

    def product(
        self, a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype
    ) -> Tensor:
        """`_int_mm`, `_scaled_mm` (one scale a tensor or a row), or a 16-bit `matmul`."""
        if a_scale is None or b_scale is None:
            return (a @ b).to(out_dtype)
        if a_scale.dim() > a.dim():  # affine: add smallest value times column sum
            step, least = a_scale.unbind(-1)
            sums = dequantize(b, b_scale).sum(0, keepdim=True)
            return (int_mm(a, b).float() * (step * b_scale) + least * sums).to(out_dtype)
        if a.dtype in INTEGERS:
            return (int_mm(a, b).float() * (a_scale * b_scale)).to(out_dtype)
        if without_rows(a, a_scale):
            return ((a.float() @ b.float()) * (a_scale * b_scale)).to(out_dtype)
        if a_scale.dim() == 2:
            a_scale, b_scale = unit_strides(a_scale, b_scale)
        written = scaled_mm_writes(a, a_scale, out_dtype)
        columns = b.t().contiguous().t()  # _scaled_mm reads b by columns
        scales = {"scale_a": a_scale, "scale_b": b_scale}
        return torch._scaled_mm(a.contiguous(), columns, **scales, out_dtype=written).to(out_dtype)

    def traced(self, a: Tensor, a_scale: Tensor | None) -> str:
        """See Provider. A 16-bit product is named with its dtype: nothing else tells a lowered product from one that
        was left alone."""
        if goes_by_parts(a) or (a_scale is not None and without_rows(a, a_scale)):
            return ""
        if a_scale is None:
            return f"{'bmm' if a.dim() == 3 else 'mm'}[{str(a.dtype).removeprefix('torch.')}]"
        return "_int_mm" if a.dtype in INTEGERS else "_scaled_mm"

    def frozen(self, weight_dtype: torch.dtype, scaling: str, memory_planned: bool) -> Frozen | None:
        if weight_dtype == torch.int8:
            op = frozen_int_mm if memory_planned else any_frozen_int_mm
            name = "loka.frozen_int_mm" if memory_planned else "loka.any_frozen_int_mm"
            return Frozen(name, functools.partial(_rescaled, op))
        return Frozen("loka.frozen_mm", _cast) if scaling == "none" else None

    def behind(self, recipe: Recipe, dtype: torch.dtype) -> Behind | None:
        if recipe.dtype == torch.int8 and recipe.affine:
            both = lambda x, step, least, c, sums: (x.float() * (step * c) + least * sums).to(dtype)  # noqa: E731
            return Behind("affine", torch.int32, both)
        if recipe.dtype == torch.int8:
            return Behind("scales", torch.int32, lambda x, step, least, c, sums: (x.float() * (step * c)).to(dtype))
        if recipe.scaling == "none" and recipe.dtype != dtype:
            return Behind("cast", recipe.dtype, lambda x, *_: x.to(dtype))
        return None

    def timed(
        self,
        a: Callable[[], Any],
        b: Callable[[], Any],
        scales: tuple[Any, Any],
        out: Callable[[torch.dtype], Any],
        dtype: torch.dtype,
    ) -> Callable[[], Any]:
        if a().dtype in INTEGERS:
            return lambda: int_mm_into(out(torch.int32), a(), b())
        if scales[0] is None:  # as loka::frozen_mm, which allocates
            return lambda: a() @ b()
        return super().timed(a, b, scales, out, dtype)


PROVIDER = Aten()


def _summed_by_inductor(site: Site, target: Target) -> list[str]:
    """On a CPU Inductor calls no kernel for a batch of vectors (tuned_bmm and the decomposition of bmm, torch 2.13).
    With a frozen weight it calls an op of ours."""
    single = [name for name in ("M", "N", "K") if getattr(site, name) == 1]
    if target.device != "cpu" or site.op not in ("bmm", "baddbmm") or not single or site.static_rhs:
        return []
    return [f"with {' = '.join(single)} = 1 Inductor multiplies and sums, in its own code: no product is called"]


def without_rows(a: Tensor, a_scale: Tensor) -> bool:
    """Whether it is a product of FP8 with one scale a row on a CPU whose _scaled_mm wants one a tensor (torch 2.11)."""
    rows = a.device.type == "cpu" and a.dtype not in INTEGERS and a_scale.dim() == 2
    return rows and not compat.cpu_scaled_mm_takes_rows()


def scaled_mm_writes(a: Tensor, a_scale: Tensor, out_dtype: torch.dtype) -> torch.dtype:
    """The dtype that torch._scaled_mm is asked for if the product is wanted in `out_dtype`. CUDA's kernels write no
    float64, and those with one scale a row write bfloat16 only."""
    if a.is_cuda and a_scale.dim() == 2:
        return torch.bfloat16
    return torch.float32 if out_dtype == torch.float64 else out_dtype


def unit_strides(a_scale: Tensor, b_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Scales (M, 1) and (1, N) with strides that `_scaled_mm` takes; `contiguous` keeps any stride of a size of 1."""
    return a_scale.reshape(-1).contiguous().unsqueeze(1), b_scale.reshape(-1).contiguous().unsqueeze(0)


# ---------------------------------------------------------------- products with a parameter


def _rescaled(
    op: Callable[..., Any], a: Any, a_scale: Any, weight: Any, transposed: bool, more: int, out_dtype: torch.dtype
) -> Any:
    """The product times its scales. The scales are multiplied first: for a row of 1e38 the sum times its scale is
    infinite, the scale times the weight's is not."""
    acc, columns = op(a, weight, transposed, more)
    scale, sums = columns.unbind(0)
    if a_scale.dim() == acc.dim():
        return (acc.float() * (a_scale * scale)).to(out_dtype)
    step, least = a_scale.unbind(-1)
    return (acc.float() * (step * scale) + least * sums).to(out_dtype)


def _cast(a: Any, a_scale: None, weight: Any, transposed: bool, more: int, out_dtype: torch.dtype) -> Any:
    return frozen_mm(a, weight, transposed).to(out_dtype)


class Integers(NamedTuple, Generic[T]):
    acc: T
    columns: T


@dataclass(frozen=True)
class FrozenIntMm(Op[T, Integers[T]]):
    """See the module's docstring."""

    name: ClassVar[str] = "frozen_int_mm"
    values: ClassVar[Any] = Integers
    a: T
    weight: T
    transposed: bool
    more: int = 0


class AnyFrozenIntMm(FrozenIntMm[T]):
    """loka::frozen_int_mm for symbolic sizes, for which Inductor plans no memory."""

    name: ClassVar[str] = "any_frozen_int_mm"


def _int_mm(call: FrozenIntMm[Tensor]) -> Integers[Tensor]:
    q, columns = _integers(call.weight, call.transposed, call.a.shape[1], call.more)
    return Integers(int_mm(call.a, q).contiguous(), columns.clone())  # cloned: a caller may overwrite an op's outputs


def _empty_integers(call: FrozenIntMm[Tensor]) -> Integers[Tensor]:
    a, n = call.a, _columns(call.weight, call.transposed) + call.more
    return Integers(a.new_empty((a.shape[0], n), dtype=torch.int32), a.new_empty((2, n), dtype=torch.float32))


def _columns(weight: Tensor, transposed: bool) -> int:
    return weight.shape[-2 if transposed else -1]


frozen_int_mm = declare(FrozenIntMm, _empty_integers, _int_mm, gradient="never")
any_frozen_int_mm = declare(AnyFrozenIntMm, _empty_integers, _int_mm, gradient="never")


INTO = "loka::frozen_int_mm.out"
torch.library.define(
    INTO,
    "(Tensor a, Tensor weight, bool transposed, SymInt more=0, *, Tensor(a!) acc, Tensor(b!) columns)"
    " -> (Tensor(a!), Tensor(b!))",
    tags=compat.tag_of_out(),  # what Inductor looks for among an op's overloads
)


@torch.library.impl(INTO, ("cpu", "cuda"))
def _(
    a: Tensor, weight: Tensor, transposed: bool, more: int = 0, *, acc: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    q, own = _integers(weight, transposed, a.shape[1], more)
    return int_mm_into(acc, a, q), columns.copy_(own)


def _integers(weight: Tensor, transposed: bool, k: int, more: int) -> tuple[Tensor, Tensor]:
    """(the weight as int8 (K, N), its columns' scales and sums (2, N) float32)."""

    def make(tensor: Tensor) -> tuple[Tensor, Tensor]:
        q, scale = frozen.right_operand(tensor, transposed, torch.int8, "row", k, more)
        assert scale is not None
        return q, torch.cat([scale, quantization.dequantize(q, scale).sum(0, keepdim=True)])

    return frozen.frozen(weight, (transposed, "integers", k, more), make)


@dataclass(frozen=True)
class FrozenMm(Op[T, T]):
    """See the module's docstring."""

    name: ClassVar[str] = "frozen_mm"
    a: T
    weight: T
    transposed: bool


def _mm(call: FrozenMm[Tensor]) -> Tensor:
    a = call.a
    return torch.matmul(a, frozen.quantized(call.weight, call.transposed, a.dtype, "none", a.shape[-1])[0])


def _empty_mm(call: FrozenMm[Tensor]) -> Tensor:
    return call.a.new_empty((*call.a.shape[:-1], _columns(call.weight, call.transposed)))


frozen_mm = declare(FrozenMm, _empty_mm, _mm, gradient="never")
