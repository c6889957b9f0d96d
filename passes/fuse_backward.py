"""fuse_backward: the gradient of a norm and its activation takes along what else reads it row by row or over rows.

    norm_quantize_backward -> sum over rows      the gradient of a bias before the norm: one of the op's own sums

Norms and activations are those that raise_norms made one op of. Works on CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import getitem

import torch
from torch import fx

from loka_compile.graph.sites import module_name
from loka_compile.graph.splice import splice
from loka_compile.kernels.norm_quantize_backward import norm_quantize_backward
from loka_compile.passes.base import Context, PassResult, Reject, Rewrite
from loka_compile.passes.lower import NORM_BACKWARD

aten = torch.ops.aten
VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
OUT, TOTAL = 0, 6
"""Values of loka::norm_quantize_backward."""


@dataclass(frozen=True)
class FuseBackward:
    name: str = "fuse_backward"

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites: list[Rewrite] = []
        rejects: list[Reject] = []
        if context.device == "cuda":
            for node in graph.find_nodes(op="call_function", target=NORM_BACKWARD):
                _bias(node, rewrites)
        if rewrites:
            graph.eliminate_dead_code()
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


def _bias(gradient: fx.Node, rewrites: list[Rewrite]) -> None:
    """The sum of x's gradient over rows becomes the op's own."""
    sums = [node for node in _read(gradient) if _over_rows(node)]
    if not sums:
        return
    *args, _, gain = gradient.args
    made = splice(gradient, lambda *args: norm_quantize_backward(*args, True, gain), args)
    for user in list(gradient.users):
        user.replace_all_uses_with(made[user.args[1]])
    for node in sums:
        total = splice(node, lambda x, shape: x.reshape(shape), [made[TOTAL], list(node.meta["val"].shape)])
        node.replace_all_uses_with(total)
    rewrites.append(Rewrite(module_name(gradient), "sums itself over rows, for the bias before it"))


def _read(gradient: fx.Node) -> Iterator[fx.Node]:
    """What reads x's gradient, views of it looked through."""
    todo = [user for user in gradient.users if user.target is getitem and user.args[1] == OUT]
    while todo:
        for user in todo.pop().users:
            if user.target in VIEWS:
                todo.append(user)
            else:
                yield user


def _over_rows(node: fx.Node) -> bool:
    """A sum that leaves one number a column, in the gradient's own dtype."""
    if node.target is not aten.sum.dim_IntList or node.kwargs:
        return False
    summed = node.args[0].meta["val"]  # type: ignore[union-attr]
    dims = sorted(dim % summed.dim() for dim in node.args[1])  # type: ignore[union-attr]
    return dims == list(range(summed.dim() - 1))
