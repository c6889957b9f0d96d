"""A program's graphs in float64, whatever dtypes they are written in; values.py runs and compares them.

    wide(gm)      a Dynamo graph whose calls name float64 where they named another dtype of floats
    InFloat64     under it ATen operators, and ours by their references, compute in float64: casts to fewer bits keep
                  their values, nothing is rounded to an integer of a quantization, and scales are what they are

So a rewritten graph, its quantizations and fused kernels included, is the original up to float64's rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from loka_compile import compat
from loka_compile.kernels import frozen
from loka_compile.kernels.fm import fm
from loka_compile.kernels.gdpa import gdpa, gdpa_pffn, gdpa_reference
from loka_compile.kernels.gemm import product, triton_gemm
from loka_compile.kernels.gemm_norm import frozen_gemm_norm, gemm_norm
from loka_compile.kernels.norm_quantize import norm_quantize, norm_quantize_backward
from loka_compile.kernels.quantize import quantize

HALF, CASTS = (torch.float32, torch.float16, torch.bfloat16), ("float", "half", "bfloat16")
FEW_BITS = (torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2)
RMS = (torch.nn.functional.rms_norm, torch.rms_norm)
aten, loka = torch.ops.aten, torch.ops.loka


# ---------------------------------------------------------------- a Dynamo graph


def wide(gm: fx.GraphModule, with_eps: bool = True) -> fx.GraphModule:
    """The graph in float64. with_eps: norms without an eps of their own keep that of the dtype they computed in."""
    gm = compat.copy_dynamo_graph(gm)
    swap = lambda x: torch.float64 if any(x is each for each in HALF) else x  # noqa: E731
    for node in gm.graph.nodes:
        node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), swap)
        if with_eps and node.target in RMS:
            _with_eps(node)
        if node.op == "call_method" and node.target in CASTS:
            node.target = "double"
        if node.op == "call_method" and _casts(node):
            with gm.graph.inserting_after(node):
                apart = gm.graph.call_method("clone", (node,))
                apart.meta = dict(node.meta)  # a cast of this cast asks what it is
            node.replace_all_uses_with(apart, delete_user_cb=lambda user, apart=apart: user is not apart)
    gm.recompile()
    return gm


def _casts(node: fx.Node) -> bool:
    """It makes another dtype of a tensor, so new memory, which a cast from float64 to float64 would not."""
    new, old = (each.meta.get("example_value") if isinstance(each, fx.Node) else None for each in (node, node.args[0]))
    named = node.target in ("to", "type", "type_as", "double", *CASTS)
    return named and isinstance(new, Tensor) and isinstance(old, Tensor) and new.dtype != old.dtype


def _with_eps(node: fx.Node) -> None:
    names = ("input", "normalized_shape", "weight", "eps")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    if given.get("eps") is None:
        value = given["input"].meta["example_value"]
        computed = torch.promote_types(value.dtype, torch.float32)
        node.args, node.kwargs = (), {**given, "eps": torch.finfo(computed).eps}


class EpsOf(TorchFunctionMode):
    """Norms without an eps of their own have this dtype's: modules in float64 then compute what the graph does."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = torch.finfo(dtype).eps

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in RMS and len(args) < 4 and kwargs.get("eps") is None:
            kwargs["eps"] = self.eps
        return func(*args, **kwargs)


# ---------------------------------------------------------------- an ATen graph


class InFloat64(TorchDispatchMode):
    """ATen operators and ours on float64, in place of the dtypes that they name."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in OURS:
            with self:
                return OURS[func](*args, **kwargs)
        if func is aten._int_mm.default:
            return args[0] @ args[1]
        if func is aten.view.default:  # float64 may lie otherwise than what was traced; to Inductor the two are one
            return aten.reshape.default(*args)
        if func is aten._scaled_mm.default:
            return _scaled_mm(*args, **kwargs)
        if func is aten.round.default and args[0].is_floating_point():
            return args[0].clone()
        floats = any(isinstance(each, Tensor) and each.is_floating_point() for each in args)
        few = (*HALF, *FEW_BITS) if floats else HALF
        swap = lambda x: torch.float64 if any(x is each for each in few) else x  # noqa: E731
        return func(*map(swap, args), **{name: swap(each) for name, each in kwargs.items()})


def _scaled_mm(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, *_: Any, **__: Any) -> Tensor:
    return (a * scale_a) @ (b * scale_b)


def _product(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, dtype: Any, _: Any = "") -> Tensor:
    return product.reference(a, a_scale, b, b_scale, dtype)


def _frozen_gemm(
    a: Tensor,
    a_scale: Tensor | None,
    weight: Tensor,
    transposed: bool,
    dtype: Any,
    scaling: str,
    out_dtype: Any,
    provider: str,
    more: int = 0,
) -> Tensor:
    q, scale = frozen.right_operand(weight, transposed, dtype, scaling, a.shape[-1], more)
    return product.reference(a, a_scale, q, scale, out_dtype)


def _frozen_mm(a: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    return a @ frozen.right_operand(weight, transposed, torch.bfloat16, "none", a.shape[-1])[0]


def _frozen_onednn(a: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    return a @ (weight.mT if transposed else weight)


def _frozen_int_mm(a: Tensor, weight: Tensor, transposed: bool, more: int = 0) -> tuple[Tensor, Tensor]:
    q, scale = frozen.right_operand(weight, transposed, torch.int8, "row", a.shape[1], more)
    assert scale is not None
    return a @ q, torch.cat([scale, (q * scale).sum(0, keepdim=True)])


def _frozen_gemm_norm(*args: Any) -> Any:
    """What it is defined to be, wherever the mean is taken out."""
    call = frozen_gemm_norm.FrozenGemmNorm.bind(*args)
    rows = frozen_gemm_norm.rows_of(call.parameter.detach().clone(), call.transposed, call.b_dtype, call.a.shape[1])
    return gemm_norm.reference(gemm_norm.GemmNorm(call.a, call.a_scale, *rows, call.epilogue))


def _by(reference: Callable[..., Any], kind: Any) -> Callable[..., Any]:
    """A reference that is given a call by name."""
    return lambda *args, **kwargs: reference(kind.bind(*args, **kwargs))


def _attention(q: Tensor, *more: Any) -> Tensor:
    return torch.empty_like(q).copy_(gdpa_reference.reference(q, *more))  # as it lies


def _attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *more: Any) -> tuple[Tensor, ...]:
    made = gdpa_reference.reference_backward(grad, q, k, v, *more)
    return tuple(torch.empty_like(like).copy_(each) for like, each in zip((q, k, v), made, strict=True))


def _triton_quantize(x: Tensor, dtype: Any, scaling: str, both: bool) -> tuple[Tensor, ...]:
    q, scale = quantize.reference(x, dtype, scaling, -1)
    if not both or scaling in ("tensor", "tile"):
        return q, scale, q.clone() if both else q.new_empty(0), scale.new_empty(0)
    return q, scale, *quantize.reference(x, dtype, scaling, -2)


def _norm_quantize_both(
    x: Tensor, weight: Any, bias: Any, norm: str, block: int, activation: str, dtype: Any, eps: float, save: bool
) -> tuple[Tensor, ...]:
    call = norm_quantize.NormQuantize.bind(x, weight, bias, None, norm, block, activation, torch.float32, eps, save)
    y, _, statistics = norm_quantize.reference(call)
    rows, columns = (norm_quantize.quantize_rows(each, None, dtype) for each in (y, y.t()))
    return *rows, columns[0].contiguous(), columns[1], statistics


def _gemm_gradient(grad: Tensor, weight: Tensor, x: Tensor, gain: float, summed: bool) -> tuple[Tensor, Tensor]:
    out = torch.where(x <= 0, 0.0, grad @ weight * gain)
    return out, out.sum(0) if summed else x.new_empty(0)


OURS: dict[Any, Callable[..., Any]] = {
    loka.quantize.default: quantize.reference,
    loka.triton_quantize.default: _triton_quantize,
    loka.scaled_gemm.default: _product,
    loka.triton_gemm.default: triton_gemm.reference,
    loka.frozen_gemm.default: _frozen_gemm,
    loka.frozen_mm.default: _frozen_mm,
    loka.frozen_onednn.default: _frozen_onednn,
    loka.frozen_int_mm.default: _frozen_int_mm,
    loka.any_frozen_int_mm.default: _frozen_int_mm,
    loka.gemm_norm.default: _by(gemm_norm.reference, gemm_norm.GemmNorm),
    loka.frozen_gemm_norm.default: _frozen_gemm_norm,
    loka.norm_quantize.default: _by(norm_quantize.reference, norm_quantize.NormQuantize),
    loka.norm_quantize_backward.default: _by(
        norm_quantize_backward.reference, norm_quantize_backward.NormQuantizeBackward
    ),
    loka.norm_quantize_both.default: _norm_quantize_both,
    loka.gemm_gradient.default: _gemm_gradient,
    loka.grad_weight.default: lambda grad, x: (grad.t() @ x, grad.sum(0)),
    loka.fm.default: lambda *args: fm.reference(*args).contiguous(),
    loka.gdpa.default: _attention,
    loka.gdpa_backward.default: _attention_backward,
    loka.pffn.default: lambda *args: gdpa_pffn.reference(*args).contiguous(),
}


_ = gdpa  # its operators have to be registered
