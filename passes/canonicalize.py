"""canonicalize: norms and swish gates that are written out by hand become F.rms_norm, F.layer_norm and F.silu.

    x * rsqrt(mean(x^2) + eps)            F.rms_norm      also x / sqrt(..), (..) ** -0.5; times a weight
    (x - mean(x)) / sqrt(var(x) + eps)    F.layer_norm    variance by var or written out; weight, bias
    n * sigmoid(n)                        F.silu

as operators, functions or methods, over the last dimension. The functions compute in float32 and round once, so that
16-bit results change by a rounding. Casts to float32 for the norm and back (LLaMA) are part of it. What looks like a
norm and is none stays, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx
from torch.nn import functional as F

from loka_compile import compat
from loka_compile.graph.reading import called, erase, only_user, same, value, written
from loka_compile.graph.sites import module_name
from loka_compile.graph.torch_ops import same_sizes, size_arg
from loka_compile.graph.writes import between, mark, reason_against
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, rejected


@dataclass(frozen=True)
class Canonicalize:
    name: ClassVar[str] = "canonicalize"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites, rejects = [], []
        mark(graph)
        for node in list(graph.nodes):
            if gated := gate(node):
                rewrites.append(_put(node, F.silu, (gated,)))
            elif found := pattern(node):
                reason = check(found)
                if reason:
                    rejects.append(rejected(node, reason))
                else:
                    rewrites.append(rewrite(found))
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


def gate(node: fx.Node) -> fx.Node | None:
    """n of n * sigmoid(n), in either order."""
    if called(node) != "mul" or len(node.args) != 2:
        return None
    for n, sigmoid in (node.args, node.args[::-1]):
        if called(sigmoid) == "sigmoid" and sigmoid.args == (n,) and not reason_against((node, sigmoid, n)):  # type: ignore[union-attr]
            return n  # type: ignore[return-value]
    return None


@dataclass(frozen=True)
class Norm:
    """last: the node that the norm's result is. x: what is normalised, `centred` if its mean is subtracted first.
    squares: the node that averages (mean of squares, or var). of: what it averages. eps: None if it is no number,
    symbolic if it may change."""

    last: fx.Node
    x: fx.Node
    centred: bool
    squares: fx.Node
    of: fx.Node
    eps: float | torch.SymFloat | None
    reason: str = ""


def pattern(node: fx.Node) -> Norm | None:
    """The norm that ends in this node, as far as it is one."""
    found = _divided(node)
    if found is None:
        return None
    numerator, inside = found
    if called(inside) == "add" and called(inside.args[0]) == "std":
        reason = "eps is added to the deviation, not to the variance"
        return Norm(node, numerator, False, inside.args[0], numerator, None, reason)  # type: ignore[arg-type]
    squares, eps = _plus_eps(inside)
    of = _averaged(squares)
    if of is None:
        return None
    x, centred = _uncentred(numerator)
    return Norm(node, x, centred, squares, of, eps)


def check(norm: Norm) -> str:
    """Why it is no norm; empty if it is one."""
    x, squares = value(norm.x), norm.squares
    if norm.reason:
        return norm.reason
    if not isinstance(x, torch.Tensor):
        return f"{norm.x} is no tensor"
    numerator, _ = _divided(norm.last) or (norm.x, None)
    is_var = called(squares) in ("var", "getitem")
    if is_var and not norm.centred:
        return f"{numerator} is divided by a deviation and its mean is not subtracted"
    if is_var and not same(norm.of, norm.x):
        return f"{norm.x} is divided by the deviation of {norm.of}"
    if not is_var and not same(norm.of, numerator):
        return f"{numerator} is divided by the root mean square of {norm.of}"
    if norm.eps is None:
        return "eps is a tensor"
    for each in [squares, *([numerator.args[1]] if norm.centred else [])]:
        if reason := _not_over_rows(each, x.dim()):
            return reason
    if reason := reason_against(between(norm.last, norm.x)):
        return reason
    if isinstance(norm.eps, torch.SymFloat):
        compat.specialize(norm.eps)  # the functions take numbers only
    return ""


def rewrite(norm: Norm) -> Rewrite:
    """With the cast back, the weight and the bias behind it, where they belong to the norm."""
    norm = _cast_back(norm)
    weight = bias = None
    if following := _with_vector(norm.last, "mul"):
        norm, weight = replace(norm, last=following[0]), following[1]
    if norm.centred and (following := _with_vector(norm.last, "add")):
        norm, bias = replace(norm, last=following[0]), following[1]
    rows = (size_arg(norm.last, norm.x, -1),)
    if norm.centred:
        return _put(norm.last, F.layer_norm, (norm.x, rows, weight, bias, norm.eps))
    return _put(norm.last, F.rms_norm, (norm.x, rows, weight, norm.eps))


def _put(node: fx.Node, function: Any, args: tuple[Any, ...]) -> Rewrite:
    with node.graph.inserting_before(node):
        new = node.graph.call_function(function, args)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    erase(node)
    return Rewrite(module_name(new), f"{function.__name__} for what was written out")


# ---------------------------------------------------------------- the parts of a norm


def _divided(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(n, v) of n / sqrt(v), however it is written; of n / (std + eps) the sum."""
    if called(node) == "div" and len(node.args) == 2:
        n, root = node.args
        inside = _root(root)
        if called(root) == "add" and called(root.args[0]) == "std":  # type: ignore[union-attr]
            inside = root
        return (n, inside) if isinstance(n, fx.Node) and inside is not None else None  # type: ignore[return-value]
    if called(node) == "mul" and len(node.args) == 2:
        for n, inverse in (node.args, node.args[::-1]):
            inside = _inverse_root(inverse)
            if inside is not None and isinstance(n, fx.Node):
                return n, inside
    return None


def _root(node: Any) -> fx.Node | None:
    if called(node) == "sqrt" or (called(node) == "pow" and node.args[1:] == (0.5,)):
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    return None


def _inverse_root(node: Any) -> fx.Node | None:
    if called(node) == "rsqrt" or (called(node) == "pow" and node.args[1:] == (-0.5,)):
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    if called(node) == "reciprocal":
        return _root(node.args[0])
    if called(node) == "div" and node.args[0] in (1, 1.0):
        return _root(node.args[1])
    return None


def _plus_eps(node: fx.Node) -> tuple[fx.Node, float | torch.SymFloat | None]:
    """(v, eps) of v + eps; eps None where it is no number."""
    if called(node) != "add" or len(node.args) != 2 or node.kwargs:
        return node, 0.0
    first, second = node.args
    if isinstance(first, int | float):
        first, second = second, first
    if isinstance(second, fx.Node) and isinstance(value(second), torch.SymFloat):
        return first, value(second)  # type: ignore[return-value]
    return first, float(second) if isinstance(second, int | float) else None  # type: ignore[return-value]


def _averaged(node: Any) -> fx.Node | None:
    """What a mean of squares, or a variance, is taken of; None if it is neither."""
    if called(node) == "var":
        return node.args[0]
    if called(node) == "getitem" and node.args[1] == 0 and called(node.args[0]) == "var_mean":
        return node.args[0].args[0]
    if called(node) != "mean" or not node.args:
        return None
    squared = node.args[0]
    twice = called(squared) == "mul" and len(squared.args) == 2 and same(*squared.args)
    if called(squared) == "square" or twice or (called(squared) == "pow" and squared.args[1:] in ((2,), (2.0,))):
        return squared.args[0]
    return None


def _uncentred(node: fx.Node) -> tuple[fx.Node, bool]:
    """(x, True) of x - mean(x)."""
    if called(node) == "sub" and len(node.args) == 2 and not node.kwargs:
        x, mean = node.args
        of = mean.args[0] if called(mean) == "mean" and mean.args else None  # type: ignore[union-attr]
        if called(mean) == "getitem" and mean.args[1] == 1 and called(mean.args[0]) == "var_mean":  # type: ignore[union-attr]
            of = mean.args[0].args[0]  # type: ignore[union-attr]
        if of is not None and same(of, x):
            return x, True  # type: ignore[return-value]
    return node, False


def _not_over_rows(node: fx.Node, dims: int) -> str:
    """Why a mean or variance is not one value a row, with its dimension kept; empty if it is."""
    node = node.args[0] if called(node) == "getitem" else node  # type: ignore[assignment]
    kind = called(node)
    rest, kwargs = list(node.args[1:]), dict(node.kwargs)
    dim = rest.pop(0) if rest else kwargs.get("dim")
    if kind in ("var", "var_mean"):
        if isinstance(dim, bool):
            return f"{kind} is taken of the whole tensor"
        unbiased = rest.pop(0) if rest else kwargs.get("unbiased", kwargs.get("correction", True))
        if unbiased:
            return f"{kind} divides by N - 1 (unbiased), a norm by N"
    keepdim = rest.pop(0) if rest else kwargs.get("keepdim", False)
    over = dim if isinstance(dim, tuple | list) else (dim,)
    if dim is None:
        return f"{kind} is taken of the whole tensor"
    if [each % dims for each in over] != [dims - 1]:
        return f"{kind} over dim {', '.join(map(str, over))}, not the last"
    if not keepdim:
        return f"{kind}'s keepdim is False"
    if kwargs.get("dtype") is not None:
        return f"{kind} is asked for in {kwargs['dtype']}"
    return ""


def _cast_back(norm: Norm) -> Norm:
    """A norm computed in float32 whose result is cast to the dtype its input had before."""
    user, before = only_user(norm.last), norm.x.args[0] if called(norm.x) == "cast" else None
    if called(user) == "cast" and user.args[0] is norm.last and isinstance(before, fx.Node):  # type: ignore[union-attr]
        source, result, wide = value(before), value(user), value(norm.x)  # type: ignore[arg-type]
        if source.dtype == result.dtype and source.dtype.is_floating_point and source.itemsize <= wide.itemsize:
            return replace(norm, last=user, x=before) if not written(before) else norm
    return norm


def _with_vector(node: fx.Node, name: str) -> tuple[fx.Node, fx.Node] | None:
    """(user, vector) where the only user multiplies or adds one number a column, in the same dtype."""
    user = only_user(node)
    if called(user) != name or len(user.args) != 2 or user.kwargs:  # type: ignore[union-attr]
        return None
    vector = user.args[1] if user.args[0] is node else user.args[0]  # type: ignore[union-attr]
    made, of = value(node), value(vector) if isinstance(vector, fx.Node) else None
    if not isinstance(of, torch.Tensor) or made is None:
        return None
    alike = same_sizes(of.shape, made.shape[-1:]) and of.dtype == made.dtype
    return (user, vector) if alike else None  # type: ignore[return-value]
