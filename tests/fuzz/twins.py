"""The passes that make another model, held against the same change made apart from them.

block_norm, hard_swish, windowed_attention   the graph before, interpreted: another function where it calls one
no_bias                                      the graph before, with zeros for the biases of the linears it names
compskip                                     the program's own modules: a branch gives zeros, or an earlier value
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from loka_compile.passes import PassResult
from loka_compile.passes.adapt.block_norm import EPS, BlockNorm, block_norm, block_of
from loka_compile.passes.adapt.compskip import Skip
from loka_compile.passes.adapt.hard_swish import HardSwish
from loka_compile.passes.adapt.no_bias import NoBias
from loka_compile.passes.adapt.windowed_attention import WindowedAttention
from loka_compile.passes.base import DynamoPass
from loka_compile.passes.simplify.canonicalize import Canonicalize
from loka_compile.spec.compskip import CompSkip
from tests.fuzz.values import has_memory
from tests.fuzz.wide import RMS, wide

WINDOW = 1
BEFORE = (Canonicalize(),)
"""What makes the graph that is changed."""
Twin = Callable[[fx.GraphModule], Callable[..., Any]]


def skip(stack: str, number: int) -> Skip:
    """A schedule for a stack of layers with branches `a` and `b`, chosen by a number."""
    branch, which = ("a", "b")[number % 2], ("even", "odd", "1:", "all")[number // 2 % 4]
    if number // 8 % 3 == 2:
        return Skip(CompSkip(layers=f"{stack}.*", reuse={"1:": [branch]}), whole=False)
    return Skip(CompSkip(layers=f"{stack}.*", skip={which: [branch]}), whole=False)


def skip_modules(model: nn.Module, stack: str, done: PassResult) -> None:
    """The modules that the pass says it left out give zeros, or the value of an earlier layer."""
    reused = {each.site for each in done.rewrites if each.did.startswith("reuses")}
    values: dict[str, Tensor] = {}
    for path in (each.site for each in done.rewrites if re.fullmatch(rf"{stack}\.\d+\.[ab]", each.site)):
        if path not in reused:
            model.get_submodule(path).forward = torch.zeros_like
            continue
        _, layer, branch = path.split(".")
        earlier = next(
            f"{stack}.{i}.{branch}" for i in range(int(layer) - 1, -1, -1) if f"{stack}.{i}.{branch}" not in reused
        )
        keep = lambda _, __, out, earlier=earlier: values.__setitem__(earlier, out)  # noqa: E731
        model.get_submodule(earlier).register_forward_hook(keep)
        model.get_submodule(path).forward = lambda x, earlier=earlier: values[earlier]


# ---------------------------------------------------------------- the graph before, interpreted


class _Interpreter(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, functions: dict[Any, Callable[..., Any]]) -> None:
        super().__init__(gm)
        self.functions = functions

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        own = self.functions.get(target)
        if own is None or (own is _blocks and _sized_by_others(self.node)):
            return super().call_function(target, args, kwargs)
        return own(target, *args, **kwargs)


def _sized_by_others(node: fx.Node) -> bool:
    """A norm over a size that the graph does not know stays as it is. `x.shape[-1:]` is a node of known sizes."""
    shape = node.kwargs.get("normalized_shape", node.args[1] if len(node.args) > 1 else ())
    given = map_arg(shape, lambda each: each.meta.get("example_value"))
    sizes = [*given] if isinstance(given, torch.Size) else tree_leaves(given)
    return any(not (isinstance(each, int) or _is_number(each)) for each in sizes)


def _is_number(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and size.node.expr.is_number


def _instead(functions: dict[Any, Callable[..., Any]], with_eps: bool = True) -> Twin:
    return lambda gm: _Interpreter(wide(gm, with_eps), functions).run


def _blocks(target: Any, *args: Any, **kwargs: Any) -> Tensor:
    names = ("input", "normalized_shape", "weight", *(() if target in RMS else ("bias",)), "eps")
    given = dict(zip(names, args, strict=False)) | kwargs
    shape, eps = given["normalized_shape"], given.get("eps")
    shape = tuple(shape) if isinstance(shape, list | tuple | torch.Size) else (shape,)
    if len(shape) != 1 or not block_of(shape[0]):
        return target(*args, **kwargs)
    return block_norm(given["input"], block_of(shape[0]), EPS if eps is None else eps)


def _hard(_: Any, x: Tensor, inplace: bool = False) -> Tensor:
    z = x.clone() if inplace else x
    y = torch.where(z < 3, torch.where(z > -3, z * (z + 3) / 6, 0.0), z)  # at the bends as F.hardswish differentiates
    return x.copy_(y) if inplace else y


def _windowed(
    target: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    t, row_mask = q.shape[-2], attn_mask is None or (attn_mask.dim() == 4 and attn_mask.shape[2] == 1)
    if q.dim() != 4 or k.shape[-2] != t or dropout_p or enable_gqa or t <= WINDOW + 1 or not row_mask:
        return target(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    away = torch.arange(t).unsqueeze(1) - torch.arange(t)
    near = (away.abs() <= WINDOW) & ((away >= 0) | (not is_causal))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    out = scores.masked_fill(~near, -torch.inf).softmax(-1) @ v
    return torch.empty_like(target(q, k, v)).copy_(out)  # as it lies


def _without_biases(gm: fx.GraphModule) -> Callable[..., Any]:
    """Zeros for the biases of linears before a product and of layer norms. Inside of vmap or grad nothing is read."""
    gm = wide(gm)
    feeding: set[fx.Node] = set()
    memory: set[int] = set()  # that a product reads, later on
    for node in reversed(gm.graph.nodes):
        is_product = _is_product(node) and has_memory(node.meta["example_value"])
        if node in feeding or is_product or not memory.isdisjoint(_written(node)):
            feeding.update(node.all_input_nodes)
            memory.update(storage for each in node.all_input_nodes for storage in _storages(each))
    for node in gm.graph.nodes:
        if node.op != "call_function" or node.target not in (F.linear, F.layer_norm, torch.layer_norm):
            continue
        if not has_memory(node.meta["example_value"]):
            continue
        place = 2 if node.target is F.linear else 3
        bias = node.args[place] if len(node.args) > place else node.kwargs.get("bias")
        if not isinstance(bias, fx.Node) or bias.op != "placeholder" or (place == 2 and node not in feeding):
            continue
        with gm.graph.inserting_before(node):
            zero = gm.graph.call_function(torch.zeros_like, (bias,))
        node.replace_input_with(bias, zero)
    gm.recompile()
    return gm


def _written(node: fx.Node) -> list[int]:
    """The memory that a call writes: of `x` in `x.add_(y)`, `x[i] = y`, `add(y, z, out=x)`; a batch's statistics."""
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    in_place = name == "setitem" or (name.endswith("_") and not name.endswith("__")) or node.kwargs.get("inplace")
    into = [node.kwargs.get("out"), *(node.args[:1] if in_place else node.args[1:3] if name == "batch_norm" else ())]
    return [storage for each in tree_leaves(into) if isinstance(each, fx.Node) for storage in _storages(each)]


def _storages(node: fx.Node) -> list[int]:
    values = [x for x in tree_leaves(node.meta.get("example_value")) if isinstance(x, Tensor) and has_memory(x)]
    return [x.untyped_storage()._cdata for x in values]


def _is_product(node: fx.Node) -> bool:
    name = getattr(node.target, "__name__", node.target if node.op == "call_method" else "")
    return name in (
        "linear",
        "matmul",
        "mm",
        "bmm",
        "addmm",
        "baddbmm",
        "einsum",
        "bilinear",
        "scaled_dot_product_attention",
    )


OF: tuple[tuple[DynamoPass, Twin], ...] = (
    (NoBias(), _without_biases),
    (BlockNorm(), _instead(dict.fromkeys((*RMS, F.layer_norm, torch.layer_norm), _blocks), with_eps=False)),
    (HardSwish(), _instead({F.silu: _hard, torch.ops.aten.silu.default: _hard})),
    (WindowedAttention({"**": WINDOW}, whole=False), _instead({F.scaled_dot_product_attention: _windowed})),
)
