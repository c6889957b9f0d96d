"""canonicalize: norms and swish gates that are written by hand become F.rms_norm, F.layer_norm and F.silu.

    x * rsqrt(mean(x^2) + eps)            F.rms_norm      also x / sqrt(..), (..) ** -0.5; times a weight
    (x - mean(x)) / sqrt(var(x) + eps)    F.layer_norm    variance by var or by hand; weight, bias
    n * sigmoid(n)                        F.silu

Operators, functions and methods all count, over the last dimension. Casts to float32 before the norm and back after it
(LLaMA) are part of it. torch's functions compute in float32 and round once, so 16-bit results may change by one
rounding. A pattern that almost fits is refused with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx
from torch.nn import functional as F

from loka_compile import compat
from loka_compile.graph import edit
from loka_compile.graph.edit import emit, size_arg
from loka_compile.graph.facts import CALLS, Reading
from loka_compile.graph.sites import module_name
from loka_compile.graph.sizes import same_sizes
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, rejected
from loka_compile.passes.simplify._norm_parts import (
    averaged,
    both_ways,
    divided,
    not_over_rows,
    plus_eps,
    sum_with_std,
    uncentred,
)


@dataclass(frozen=True)
class Canonicalize:
    name: ClassVar[str] = "canonicalize"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        rewrites, rejects = [], []
        for node in list(reading.graph.nodes):
            if found := gate(reading, node) or pattern(reading, node):
                reason = check(reading, found)
                if reason:
                    rejects.append(rejected(node, reason))
                else:
                    rewrites.append(rewrite(reading, found))
            elif reason := _unread(reading, node):
                rejects.append(rejected(node, reason))
        reading.graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


@dataclass(frozen=True)
class Gate:
    """n * sigmoid(n): the product is `last`, n is `x`."""

    last: fx.Node
    x: fx.Node
    sigmoid: fx.Node


@dataclass(frozen=True)
class Norm:
    """A norm written by hand, as far as it was recognized.

    last: the node whose value is replaced. x: what is normalized. centred: its mean is subtracted first. squares: the
    node that averages, a mean of squares or var. of: what that node averages. eps: None if it is no number; a SymFloat
    if it may change. reason: why it is no norm after all.
    """

    last: fx.Node
    x: fx.Node
    centred: bool
    squares: fx.Node
    of: fx.Node
    eps: float | torch.SymFloat | None
    reason: str = ""


def gate(reading: Reading, node: fx.Node) -> Gate | None:
    """The gate whose product is this node, in either order."""
    for n, sigmoid in both_ways(reading.operands(node, "mul")):
        if reading.op(sigmoid) == "sigmoid" and reading.arg(sigmoid, "self") is n:
            return Gate(node, n, sigmoid)
    return None


def pattern(reading: Reading, node: fx.Node) -> Norm | None:
    """The norm that ends in this node, if its division by a root of an average is found."""
    found = divided(reading, node)
    if found is None:
        return None
    numerator, inside = found
    if deviation := sum_with_std(reading, inside):
        reason = "eps is added to the deviation; expected to the variance"
        return Norm(node, numerator, False, deviation, numerator, None, reason)
    squares, eps = plus_eps(reading, inside)
    of = averaged(reading, squares)
    if of is None:
        return None
    x, centred = uncentred(reading, numerator)
    return Norm(node, x, centred, squares, of, eps)


def check(reading: Reading, found: Norm | Gate) -> str:
    """Why it is no norm, or no gate; "" if it is one."""
    x = reading.value(found.x)
    if isinstance(found, Norm) and found.reason:
        return found.reason
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        return f"{found.x} is no floating-point tensor"
    reason = _not_normed(reading, found) if isinstance(found, Norm) else ""
    if reason := reason or reading.reason_against(_parts(reading, found)):
        return reason
    if (made := reading.value(found.last).dtype) != x.dtype:
        return f"{found.x} is {x.dtype}, but the result is {made}; a norm keeps its input's dtype"
    if isinstance(found, Norm) and isinstance(found.eps, torch.SymFloat):
        compat.specialize(found.eps)  # the functions take numbers only
    return ""


def _not_normed(reading: Reading, norm: Norm) -> str:
    """Why numerator, average and eps do not make a norm over the last dimension; "" if they do."""
    squares, (numerator, _) = norm.squares, divided(reading, norm.last) or (norm.x, None)
    is_var = reading.op(squares) in ("var", "getitem")
    if is_var and not norm.centred:
        return f"{numerator} is divided by a standard deviation, but its mean is not subtracted"
    if is_var and not reading.same(norm.of, norm.x):
        return f"{norm.x} is divided by the standard deviation of another value, {norm.of}"
    if not is_var and not reading.same(norm.of, numerator):
        return f"{numerator} is divided by the root mean square of another value, {norm.of}"
    if norm.eps is None:
        return "eps is a tensor; expected a number"
    averages = [squares, *([reading.arg(numerator, "other")] if norm.centred else [])]
    reasons = (not_over_rows(reading, each, reading.rank(norm.x)) for each in averages)
    return next(filter(None, reasons), "")


def rewrite(reading: Reading, found: Norm | Gate) -> Rewrite:
    """Replace the norm, with the cast back, the weight and the bias after it."""
    if isinstance(found, Gate):
        return _put(reading, found.last, F.silu, found.x)
    norm = _cast_back(reading, found)
    weight = bias = None
    if following := _with_vector(reading, norm, "mul"):
        norm, weight = replace(norm, last=following[0]), following[1]
    if norm.centred and (following := _with_vector(reading, norm, "add")):
        norm, bias = replace(norm, last=following[0]), following[1]
    rows = (size_arg(reading, norm.last, norm.x, -1),)
    if norm.centred:
        return _put(reading, norm.last, F.layer_norm, norm.x, rows, weight, bias, norm.eps)
    return _put(reading, norm.last, F.rms_norm, norm.x, rows, weight, norm.eps)


def _put(reading: Reading, node: fx.Node, function: Any, *args: Any) -> Rewrite:
    new = edit.replace(reading, node, emit(reading, node, function, *args))
    return Rewrite(module_name(new), f"{function.__name__} for what was written out")


def _parts(reading: Reading, found: Norm | Gate) -> list[fx.Node]:
    """All nodes from the input to the last node."""
    if isinstance(found, Gate):
        return [found.sigmoid, found.last]
    return between(reading, found.last, found.x)


def between(reading: Reading, last: fx.Node, x: fx.Node) -> list[fx.Node]:
    """`last` and the calls it depends on, up to x or another node of x's value: all that one norm of x stands for."""
    found, todo = {last: None}, [last]
    while todo:
        for each in todo.pop().all_input_nodes:
            if each not in found and each.op in CALLS and not reading.same(each, x):
                found[each] = None
                todo.append(each)
    return list(found)


def _unread(reading: Reading, node: fx.Node) -> str:
    """The refusal for the first node that PyTorch could not run on fake tensors; "" for nodes it could, and for those
    after it."""
    reason = reading.facts[node].reason if node in reading.facts else ""
    first = reason and node.users and not any(reading.facts[each].reason for each in node.all_input_nodes)
    return f"it stays as written, as it cannot be read: {reason}" if first else ""


# ---------------------------------------------------------------- around the norm


def _cast_back(reading: Reading, norm: Norm) -> Norm:
    """The norm with the casts around it, if it is computed in float32 and its result is cast back to the dtype of its
    input."""
    user, before = reading.only_user(norm.last), reading.arg(norm.x, "self") if reading.op(norm.x) == "to" else None
    if reading.op(user) != "to" or not isinstance(before, fx.Node) or reading.arg(user, "self") is not norm.last:
        return norm
    source, result, wide = (reading.value(each) for each in (before, user, norm.x))
    back = (source.dtype, source.device) == (result.dtype, result.device) and source.is_floating_point()
    if back and source.itemsize <= wide.itemsize and not reading.reason_against((norm.x, *_parts(reading, norm), user)):
        return replace(norm, last=user, x=before)
    return norm


def _with_vector(reading: Reading, norm: Norm, op: str) -> tuple[fx.Node, fx.Node] | None:
    """(user, vector) if the norm's only reader multiplies or adds one number a column, in the same dtype."""
    user, made = reading.only_user(norm.last), reading.value(norm.last)
    for one, vector in both_ways(reading.operands(user, op)):
        if one is norm.last and reading.is_tensor(vector):
            of = reading.value(vector)
            alike = same_sizes(of.shape, made.shape[-1:]) and of.dtype == made.dtype
            if alike and not reading.reason_against((*_parts(reading, norm), user)):
                return user, vector
    return None
