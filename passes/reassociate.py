"""reassociate: chains of matrix products in the order that costs least: (X X^T) Y becomes X (X^T Y).

    cost of A (b, m, k) @ B (b, k, n)  =  b m k n multiply-adds, and for a product inside the chain WRITTEN b m n more,
                                          for it is written and read again

The same by associativity, up to rounding. The best order is found by dynamic programming over sympy sizes. Where it is
not cheaper for all values of their symbols, but for those at hand, a guard keeps it to sizes for which it is.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import sympy
import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph import torch_ops as ops
from loka_compile.graph.sites import module_name, size
from loka_compile.graph.torch_ops import arg, emit, flips, is_tensor, op_of, rank, shape
from loka_compile.graph.writes import written as written_nodes
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, rejected
from loka_compile.passes.rowwise import POINTWISE

WRITTEN = 16
"""Multiply-adds in the time that writing one value and reading it again takes."""
TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

BETWEEN = POINTWISE | {"softmax", "layer_norm", "rms_norm", "dropout"}

Tree = Any
"""A factor's place in the chain, or a pair of trees."""


@dataclass(frozen=True)
class Reassociate:
    name: ClassVar[str] = "reassociate"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        written, original = written_nodes(graph), set(graph.nodes)
        inputs = [ops.value(node) for node in graph.find_nodes(op="placeholder")]
        rewrites, rejects, inner = [], [], set()
        chains, new = [], {}
        for node in graph.nodes:
            if _operands(node) is not None:
                factors, tree, within, reasons = _chain(node)
                inner.update(within)
                chains.append((node, factors, tree, (node, *within), reasons))
        for node, factors, tree, parts, reasons in chains:
            if node in inner:
                continue
            factors = [replace(each, node=new.get(each.node, each.node)) for each in factors]  # what came before it
            rejects += [rejected(node, reason) for reason in reasons]
            if len(factors) < 3:
                continue
            best, reason = _best(node, factors, tree, inputs)
            if any(x in written for x in (*parts, *(factor.node for factor in factors))):
                reason = "something writes to one of its matrices in place"
            if reason:
                rejects.append(rejected(node, f"{_text(tree)}: {reason}"))
                continue
            new[node] = ops.replace(node, _write(node, factors, best))
            rewrites.append(Rewrite(module_name(node), f"{_text(tree)} as {_text(best)}"))
        if rewrites:
            ops.drop_dead(graph, lambda node: node not in original or _operands(node) is not None or _flips(node))
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


@dataclass(frozen=True)
class _Factor:
    """A matrix, or a batch of them, of the chain; flipped: its transpose."""

    node: fx.Node
    flipped: bool = False

    @property
    def rows(self) -> sympy.Expr:
        return size(shape(self.node)[-1 if self.flipped else -2])

    @property
    def columns(self) -> sympy.Expr:
        return size(shape(self.node)[-2 if self.flipped else -1])

    @property
    def batch(self) -> tuple[sympy.Expr, ...]:
        return tuple(map(size, shape(self.node)[:-2]))


_EINSUM = re.compile(r"(?P<batch>[a-z]*)(?P<m>[a-z])(?P<k>[a-z]),(?P=batch)(?P=k)(?P<n>[a-z])->(?P=batch)(?P=m)(?P=n)")


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Left and right of a plain product of matrices, or of batches of them."""
    name = op_of(node)
    if name in ("matmul", "mm", "bmm") and not ops.in_place(node):
        left, right = arg(node, 0, "input"), arg(node, 1, "mat2" if name != "matmul" else "other")
    elif name == "einsum" and len(node.args) == 3 and isinstance(node.args[0], str):
        found = _EINSUM.fullmatch(node.args[0].replace(" ", ""))
        letters = "" if found is None else found["batch"] + found["m"] + found["k"] + found["n"]
        if found is None or len(set(letters)) < len(letters):
            return None
        left, right = node.args[1:]
    else:
        return None
    if not (is_tensor(left) and is_tensor(right)) or min(rank(left), rank(right)) < 2:
        return None
    return (left, right) if ops.value(node).dtype in TYPES else None


def _flips(node: fx.Node) -> bool:
    """A transpose of the last two dimensions, also as t, T or a permutation."""
    name = op_of(node)
    if name not in ("t", "T", "permute") or not node.args or not is_tensor(node.args[0]):
        return flips(node)
    dims = rank(node.args[0])  # type: ignore[arg-type]
    if name in ("t", "T"):
        return dims == 2
    given: Any = node.args[1:]
    order = given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given
    if not all(isinstance(dim, int) for dim in order) or dims < 2:
        return False
    return [dim % dims for dim in order] == [*range(dims - 2), dims - 1, dims - 2]


def _chain(node: fx.Node) -> tuple[list[_Factor], Tree, list[fx.Node], list[str]]:
    """The factors of the product at a node, how they are joined, the products and transposes inside, and why a product
    is a factor rather than taken apart."""
    factors: list[_Factor] = []
    within: list[fx.Node] = []
    reasons: list[str] = []

    def visit(x: fx.Node, flipped: bool, top: bool = False) -> Tree:
        seen, base = [], x
        while not top and _flips(base):
            seen.append(base)
            base, flipped = base.args[0], not flipped  # type: ignore[assignment]
        pair = _operands(base)
        if pair is not None and not top and any(len(each.users) > 1 for each in (base, *seen)):
            reasons.append(f"the product {base} inside it has other users")
            pair = None
        elif pair is not None and not top and rank(base) != rank(node):
            pair = None
        if pair is None:
            source = base.args[0] if op_of(base) in BETWEEN and base.args else None
            if isinstance(source, fx.Node) and _operands(source) is not None:
                reasons.append(f"{op_of(base)} stands between two products")
            factors.append(_Factor(base, flipped))
            return len(factors) - 1
        within.extend(each for each in (base, *seen) if each is not node)
        left, right = (pair[1], pair[0]) if flipped else pair
        return visit(left, flipped), visit(right, flipped)

    return factors, visit(node, False, top=True), within, reasons


def _cost(i: int, j: int, k: int, factors: list[_Factor]) -> sympy.Expr:
    """Of joining factors i..k to factors k+1..j, with writing the result where it is not the whole chain."""
    batch = math.prod(_batch(factors[i : j + 1]), start=sympy.Integer(1))
    rows, columns = factors[i].rows, factors[j].columns
    whole = i == 0 and j == len(factors) - 1
    return batch * rows * columns * (factors[k].columns + (0 if whole else WRITTEN))


def _batch(factors: list[_Factor]) -> tuple[sympy.Expr, ...]:
    """The batch dimensions of a product: those of the factors, broadcast."""
    most = max(len(factor.batch) for factor in factors)
    padded = [(sympy.Integer(1),) * (most - len(factor.batch)) + factor.batch for factor in factors]
    return tuple(next((s for s in sizes if s != 1), sympy.Integer(1)) for sizes in zip(*padded, strict=True))


def _total(tree: Tree, factors: list[_Factor]) -> sympy.Expr:
    if isinstance(tree, int):
        return sympy.Integer(0)
    first, middle, last = _span(tree[0])[0], _span(tree[0])[1], _span(tree[1])[1]
    return _cost(first, last, middle, factors) + _total(tree[0], factors) + _total(tree[1], factors)


def _span(tree: Tree) -> tuple[int, int]:
    return (tree, tree) if isinstance(tree, int) else (_span(tree[0])[0], _span(tree[1])[1])


def _best(node: fx.Node, factors: list[_Factor], tree: Tree, inputs: list[Any]) -> tuple[Tree, str]:
    """The cheapest order, and why it is not taken; the latter empty where it is."""
    now = _total(tree, factors)
    here = lambda cost: compat.hint_of(sympy.sympify(cost), inputs)  # noqa: E731
    best: dict[tuple[int, int], Tree] = {(i, i): i for i in range(len(factors))}
    for length in range(1, len(factors)):
        for i in range(len(factors) - length):
            j = i + length
            splits = ((best[i, k], best[k + 1, j]) for k in range(i, j))
            best[i, j] = min(splits, key=lambda each: here(_total(each, factors)))
    found = best[0, len(factors) - 1]
    then = _total(found, factors)
    if found == tree or here(then) >= here(now):
        return tree, f"no other order is cheaper than its {here(now):,} multiply-adds"
    if not _always(now - then):
        compat.guard_sizes(inputs, then < now)
    return found, ""


def _always(difference: sympy.Expr) -> bool:
    """Whether it is positive for all positive sizes: a common factor and a number, or terms that are all positive."""
    symbols = {symbol: sympy.Symbol(symbol.name, positive=True, integer=True) for symbol in difference.free_symbols}
    return sympy.factor(difference.xreplace(symbols)).is_positive is True


def _write(before: fx.Node, factors: list[_Factor], tree: Tree) -> fx.Node:
    if isinstance(tree, int):
        factor = factors[tree]
        return emit(before, "transpose", factor.node, -2, -1) if factor.flipped else factor.node
    return emit(before, torch.matmul, *(_write(before, factors, each) for each in tree))


def _text(tree: Tree) -> str:
    """((0, 1), 2) as `(AB)C`."""
    if isinstance(tree, int):
        return chr(ord("A") + tree)
    return "".join(_text(each) if isinstance(each, int) else f"({_text(each)})" for each in tree)
