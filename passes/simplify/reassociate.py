"""reassociate: chains of matrix products are multiplied in the cheapest order: (X X^T) Y becomes X (X^T Y).

    cost of A (b, m, k) @ B (b, k, n)  =  b m k n multiply-adds; for a product inside the chain WRITTEN b m n more,
                                          because it is written and read again

The result is the same by associativity, up to rounding. Dynamic programming over sympy sizes finds the best order. If
that order is cheaper for the sizes at hand but not for all sizes, a guard restricts the graph to sizes for which it is.
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
"""Multiply-adds in the time it takes to write one value and read it again."""
TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

BETWEEN = ("softmax", "layer_norm", "rms_norm", "dropout")
"""Operators, besides pointwise ones, that are named as the reason if they stand between two products."""

Tree = Any
"""How factors are joined: a factor's index, or a pair of trees."""


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
            factors = [
                replace(each, node=new.get(each.node, each.node)) for each in chain.factors
            ]  # factors that were replaced before
            out = _write(reading, chain.last, factors, best)
            new[chain.last] = edit.replace(reading, chain.last, out)
            did = f"{_text(chain.tree)} as {_text(best)}"
            rewrites.append(Rewrite(module_name(new[chain.last]), did))
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


@dataclass(frozen=True)
class _Factor:
    """A matrix of the chain, or a batch of matrices.

    flipped: the chain multiplies its transpose.
    sizes: of the node itself.
    """

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
    """A chain of products that ends in `last`.

    tree: the present order.
    within: the products and transposes inside the chain.
    reasons: why a product is a factor instead of being taken apart.
    """

    last: fx.Node
    factors: tuple[_Factor, ...]
    tree: Tree
    within: tuple[fx.Node, ...]
    reasons: tuple[str, ...]


_EINSUM = re.compile(r"(?P<batch>[a-z]*)(?P<m>[a-z])(?P<k>[a-z]),(?P=batch)(?P=k)(?P<n>[a-z])->(?P=batch)(?P=m)(?P=n)")


def _operands(reading: Reading, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Left and right of a product of matrices, or of batches of matrices; None for other nodes."""
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
    """The chain that ends in this product."""
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
    """The reason for the record if a factor is made from a product by some other operator."""
    name, source = reading.op(node), next(iter(node.all_input_nodes), None)
    alone = name in BETWEEN or (name and reading.facts[node].pointwise)
    made = alone and source is not None and _operands(reading, source) is not None
    return [f"{name} stands between two products"] if made else []


def _cost(i: int, j: int, k: int, factors: Sequence[_Factor]) -> sympy.Expr:
    """Multiply-adds of (factors i..k) @ (factors k+1..j), plus those that writing the result takes unless it is the
    whole chain."""
    batch = math.prod(_batch(factors[i : j + 1]), start=sympy.Integer(1))
    rows, columns = factors[i].rows, factors[j].columns
    whole = i == 0 and j == len(factors) - 1
    return batch * rows * columns * (factors[k].columns + (0 if whole else WRITTEN))


def _batch(factors: Sequence[_Factor]) -> tuple[sympy.Expr, ...]:
    """The batch dimensions of a product: the factors' own, broadcast."""
    most = max(len(factor.batch) for factor in factors)
    padded = [(sympy.Integer(1),) * (most - len(factor.batch)) + factor.batch for factor in factors]
    return tuple(next((s for s in sizes if s != 1), sympy.Integer(1)) for sizes in zip(*padded, strict=True))


def _total(tree: Tree, factors: Sequence[_Factor]) -> sympy.Expr:
    """The cost of all products of a tree."""
    if isinstance(tree, int):
        return sympy.Integer(0)
    first, middle, last = _span(tree[0])[0], _span(tree[0])[1], _span(tree[1])[1]
    return _cost(first, last, middle, factors) + _total(tree[0], factors) + _total(tree[1], factors)


def _span(tree: Tree) -> tuple[int, int]:
    """The first and last factor of a tree."""
    return (tree, tree) if isinstance(tree, int) else (_span(tree[0])[0], _span(tree[1])[1])


def _best(chain: _Chain, inputs: list[Any]) -> tuple[Tree, str]:
    """(tree, reason): the cheapest order, or the present one with the reason why it stays."""
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
    """Whether the difference is positive for all positive sizes, as far as sympy sees it after factoring."""
    symbols = {symbol: sympy.Symbol(symbol.name, positive=True, integer=True) for symbol in difference.free_symbols}
    return sympy.factor(difference.xreplace(symbols)).is_positive is True


def _write(reading: Reading, before: fx.Node, factors: Sequence[_Factor], tree: Tree) -> fx.Node:
    """Write the products of a tree before a node."""
    if isinstance(tree, int):
        factor = factors[tree]
        return emit(reading, before, "transpose", factor.node, -2, -1) if factor.flipped else factor.node
    return emit(reading, before, torch.matmul, *(_write(reading, before, factors, each) for each in tree))


def _text(tree: Tree) -> str:
    """The order for a reader: ((0, 1), 2) is `(AB)C`."""
    if isinstance(tree, int):
        return chr(ord("A") + tree)
    return "".join(_text(each) if isinstance(each, int) else f"({_text(each)})" for each in tree)
