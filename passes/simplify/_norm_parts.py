"""The parts of a norm that is written by hand: quotients, roots, averages, each in any spelling."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from loka_compile.graph.facts import Reading


def both_ways(pair: tuple[Any, Any] | None) -> list[tuple[Any, Any]]:
    """The pair in both orders."""
    return [pair, pair[::-1]] if pair is not None else []


def divided(reading: Reading, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(n, v) if the node is n / sqrt(v) in any spelling; for n / (std + eps) v is that sum."""
    if quotient := reading.operands(node, "div"):
        n, root = quotient
        inside = root if sum_with_std(reading, root) else _root(reading, root)
        return (n, inside) if isinstance(n, fx.Node) and inside is not None else None
    for n, inverse in both_ways(reading.operands(node, "mul")):
        inside = _inverse_root(reading, inverse)
        if inside is not None and isinstance(n, fx.Node):
            return n, inside
    return None


def sum_with_std(reading: Reading, node: Any) -> fx.Node | None:
    """std if the node is std + eps."""
    std, _ = reading.operands(node, "add") or (None, None)
    return std if reading.op(std) == "std" else None


def _root(reading: Reading, node: Any) -> fx.Node | None:
    """v if the node is sqrt(v)."""
    return _power(reading, node, 0.5) or (reading.arg(node, "self") if reading.op(node) == "sqrt" else None)


def _inverse_root(reading: Reading, node: Any) -> fx.Node | None:
    """v if the node is 1 / sqrt(v)."""
    if reading.op(node) == "rsqrt":
        return reading.arg(node, "self")
    one, below = reading.operands(node, "div") or (None, None)
    if reading.op(node) == "reciprocal":
        one, below = 1, reading.arg(node, "self")
    return _power(reading, node, -0.5) or (_root(reading, below) if one in (1, 1.0) else None)


def _power(reading: Reading, node: Any, exponent: float) -> fx.Node | None:
    """x if the node is x ** exponent."""
    x, given = reading.operands(node, "pow") or (None, None)
    return x if isinstance(x, fx.Node) and isinstance(given, int | float) and given == exponent else None


def plus_eps(reading: Reading, node: fx.Node) -> tuple[fx.Node, float | torch.SymFloat | None]:
    """(v, eps) if the node is v + eps, else (node, 0.0); eps is None if it is a tensor."""
    v, eps = reading.operands(node, "add") or (node, 0.0)
    if not isinstance(v, fx.Node):
        v, eps = eps, v
    number = reading.value(eps)
    if isinstance(number, torch.SymFloat):
        return v, number
    return v, float(number) if isinstance(number, int | float) else None


def averaged(reading: Reading, node: Any) -> fx.Node | None:
    """x if the node is the mean of x^2 or a variance of x."""
    if reading.op(node) == "var":
        return reading.arg(node, "self")
    if of := _of_var_mean(reading, node, 0):
        return of
    squared = reading.arg(node, "self") if reading.op(node) == "mean" else None
    if reading.op(squared) == "square":
        return reading.arg(squared, "self")
    a, b = reading.operands(squared, "mul") or (None, 0)
    return a if reading.same(a, b) else _power(reading, squared, 2)


def _of_var_mean(reading: Reading, node: Any, which: int) -> fx.Node | None:
    """x if the node is the variance (which = 0) or the mean (1) of var_mean(x)."""
    if reading.op(node) == "getitem" and node.args[1] == which and reading.op(node.args[0]) == "var_mean":
        return reading.arg(node.args[0], "self")
    return None


def uncentred(reading: Reading, node: fx.Node) -> tuple[fx.Node, bool]:
    """(x, True) if the node is x - mean(x), else (node, False)."""
    x, mean = reading.operands(node, "sub") or (None, None)
    of = reading.arg(mean, "self") if reading.op(mean) == "mean" else _of_var_mean(reading, mean, 1)
    return (x, True) if of is not None and reading.same(of, x) else (node, False)


def not_over_rows(reading: Reading, node: fx.Node, dims: int) -> str:
    """Why a mean or variance is not one value a row, with its dimension kept; "" if it is."""
    node = node.args[0] if reading.op(node) == "getitem" else node
    kind, over = reading.op(node), reading.arg(node, "dim")
    if kind != "mean" and reading.arg(node, "unbiased", reading.arg(node, "correction", 1)) in (None, 1, True):
        return f"{kind} divides by N - 1 (unbiased); a norm divides by N"
    if not over or not dims:
        return f"{kind} is taken of the whole tensor"
    if [each % dims for each in over] != [dims - 1]:
        return f"{kind} over dim {', '.join(map(str, over))}, not the last"
    if not reading.arg(node, "keepdim"):
        return f"{kind}'s keepdim is False"
    if reading.arg(node, "dtype") is not None:
        return f"{kind} computes in {reading.arg(node, 'dtype')}; expected the dtype of its input"
    return ""
