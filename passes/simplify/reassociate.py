"""reassociate: chains of matrix products in the order that costs least: (X X^T) Y becomes X (X^T Y).

    cost of A (b, m, k) @ B (b, k, n)  =  b m k n multiply-adds, and for a product inside the chain WRITTEN b m n more,
                                          for it is written and read again

The same by associativity, up to rounding. The best order is found by dynamic programming over sympy sizes. Where it is
not cheaper for all values of their symbols, but for those at hand, a guard keeps it to sizes for which it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import sympy
import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph import edit
from loka_compile.graph.edit import emit
from loka_compile.graph.facts import Reading
from loka_compile.graph.sites import module_name, size
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, rejected

WRITTEN = 16
"""Multiply-adds in the time that writing one value and reading it again takes."""
TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

BETWEEN = ("softmax", "layer_norm", "rms_norm", "dropout")
"""What may stand between two products, besides pointwise operators."""

Tree = Any
"""A factor's place in the chain, or a pair of trees."""


@dataclass(frozen=True)
class Reassociate:
    name: ClassVar[str] = "reassociate"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        graph = reading.graph
        new: dict[fx.Node, fx.Node] = {}
        inputs = [reading.value(node) for node in graph.find_nodes(op="placeholder")]
        chains = [_chain(reading, node) for node in graph.nodes if _operands(reading, node) is not None]
        inner = {node for chain in chains for node in chain.within}
        rewrites, rejects = [], []
        for chain in [each for each in chains if each.last not in inner]:
            rejects += [rejected(chain.last, reason) for reason in chain.reasons]
            if len(chain.factors) < 3:
                continue
            reason = reading.reason_against((chain.last, *chain.within))
            best, reason = (chain.tree, reason) if reason else _best(chain, inputs)
            if reason:
                rejects.append(rejected(chain.last, f"{_text(chain.tree)}: {reason}"))
                continue
            factors = [replace(each, node=new.get(each.node, each.node)) for each in chain.factors]  # what came before
            out = _write(reading, chain.last, factors, best)
            new[chain.last] = edit.replace(reading, chain.last, out)
            did = f"{_text(chain.tree)} as {_text(best)}"
            rewrites.append(Rewrite(module_name(new[chain.last]), did))
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


@dataclass(frozen=True)
class _Factor:
    """A matrix, or a batch of them, of the chain; flipped: its transpose. sizes: the node's own."""

    node: fx.Node
    flipped: bool
    sizes: tuple[sympy.Expr, ...]

    @property
    def rows(self) -> sympy.Expr:
        return self.sizes[-1 if self.flipped else -2]

    @property
    def columns(self) -> sympy.Expr:
        return self.sizes[-2 if self.flipped else -1]

    @property
    def batch(self) -> tuple[sympy.Expr, ...]:
        return self.sizes[:-2]


@dataclass(frozen=True)
class _Chain:
    """The product `last`. tree: how its factors are joined. within: the products and transposes inside. reasons: why a
    product is a factor rather than taken apart."""

    last: fx.Node
    factors: tuple[_Factor, ...]
    tree: Tree
    within: tuple[fx.Node, ...]
    reasons: tuple[str, ...]


_EINSUM = re.compile(r"(?P<batch>[a-z]*)(?P<m>[a-z])(?P<k>[a-z]),(?P=batch)(?P=k)(?P<n>[a-z])->(?P=batch)(?P=m)(?P=n)")


def _operands(reading: Reading, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Left and right of a plain product of matrices, or of batches of them."""
    found = reading.product(node)
    if reading.op(node) == "einsum" and len(reading.arg(node, "tensors")) == 2:
        equation = _EINSUM.fullmatch(reading.arg(node, "equation").replace(" ", ""))
        letters = "" if equation is None else equation["batch"] + equation["m"] + equation["k"] + equation["n"]
        if equation is not None and len(set(letters)) == len(letters):
            found = tuple(reading.arg(node, "tensors"))
    if found is None or min(map(reading.rank, found)) < 2 or reading.value(node).dtype not in TYPES:
        return None
    return found


def _chain(reading: Reading, last: fx.Node) -> _Chain:
    """All that is multiplied to the product at a node."""
    factors: list[_Factor] = []
    within: list[fx.Node] = []
    reasons: list[str] = []

    def visit(x: fx.Node, flipped: bool) -> Tree:
        seen, base = [], x
        while x is not last and (before := reading.flipped(base)) is not None:
            seen.append(base)
            base, flipped = before, not flipped
        pair = _operands(reading, base)
        if pair is not None and x is not last and any(len(each.users) > 1 for each in (base, *seen)):
            reasons.append(f"the product {base} inside it has other users")
            pair = None
        elif pair is not None and reading.rank(base) != reading.rank(last):
            pair = None
        if pair is None:
            reasons.extend(_stands_between(reading, base))
            factors.append(_Factor(base, flipped, tuple(map(size, reading.shape(base)))))
            return len(factors) - 1
        within.extend(each for each in (base, *seen) if each is not last)
        left, right = (pair[1], pair[0]) if flipped else pair
        return visit(left, flipped), visit(right, flipped)

    tree = visit(last, False)
    return _Chain(last, tuple(factors), tree, tuple(within), tuple(reasons))


def _stands_between(reading: Reading, node: fx.Node) -> list[str]:
    """Why the chain ends at this factor: something stands between it and the product it is made of."""
    name, source = reading.op(node), next(iter(node.all_input_nodes), None)
    alone = name in BETWEEN or (name and reading.facts[node].pointwise)
    made = alone and source is not None and _operands(reading, source) is not None
    return [f"{name} stands between two products"] if made else []


def _cost(i: int, j: int, k: int, factors: Sequence[_Factor]) -> sympy.Expr:
    """FLOPs of multiplying factors i..k by factors k+1..j, and of writing the result where it is not the whole
    chain."""
    batch = math.prod(_batch(factors[i : j + 1]), start=sympy.Integer(1))
    rows, columns = factors[i].rows, factors[j].columns
    whole = i == 0 and j == len(factors) - 1
    return batch * rows * columns * (factors[k].columns + (0 if whole else WRITTEN))


def _batch(factors: Sequence[_Factor]) -> tuple[sympy.Expr, ...]:
    """The batch dimensions of a product: those of the factors, broadcast."""
    most = max(len(factor.batch) for factor in factors)
    padded = [(sympy.Integer(1),) * (most - len(factor.batch)) + factor.batch for factor in factors]
    return tuple(next((s for s in sizes if s != 1), sympy.Integer(1)) for sizes in zip(*padded, strict=True))


def _total(tree: Tree, factors: Sequence[_Factor]) -> sympy.Expr:
    if isinstance(tree, int):
        return sympy.Integer(0)
    first, middle, last = _span(tree[0])[0], _span(tree[0])[1], _span(tree[1])[1]
    return _cost(first, last, middle, factors) + _total(tree[0], factors) + _total(tree[1], factors)


def _span(tree: Tree) -> tuple[int, int]:
    return (tree, tree) if isinstance(tree, int) else (_span(tree[0])[0], _span(tree[1])[1])


def _best(chain: _Chain, inputs: list[Any]) -> tuple[Tree, str]:
    """The cheapest order, and why it is not taken; the latter empty where it is."""
    tree, factors = chain.tree, chain.factors
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


def _write(reading: Reading, before: fx.Node, factors: Sequence[_Factor], tree: Tree) -> fx.Node:
    if isinstance(tree, int):
        factor = factors[tree]
        return emit(reading, before, "transpose", factor.node, -2, -1) if factor.flipped else factor.node
    return emit(reading, before, torch.matmul, *(_write(reading, before, factors, each) for each in tree))


def _text(tree: Tree) -> str:
    """((0, 1), 2) as `(AB)C`."""
    if isinstance(tree, int):
        return chr(ord("A") + tree)
    return "".join(_text(each) if isinstance(each, int) else f"({_text(each)})" for each in tree)
