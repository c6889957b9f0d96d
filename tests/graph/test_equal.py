"""Nodes that compute the same: found through views and casts; what is drawn or written is never the same."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from loka_compile.graph.equal import equal

aten = torch.ops.aten


def groups(function, *shapes):
    graph = make_fx(function)(*(torch.randn(shape) for shape in shapes)).graph
    products = graph.find_nodes(op="call_function", target=aten.mm.default)
    return len(products), [len(group) for group in equal(products)]


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda x, w: (x @ w, x @ w), (2, [2])),
        (lambda x, w: (x @ w, x.relu() @ w, x.relu() @ w), (3, [2])),
        (lambda x, w: (x.t().contiguous().t() @ w, x.t().contiguous().t() @ w, x @ w), (3, [2])),
        (lambda x, w: (x.split(2)[0] @ w, x.split(2)[0] @ w, x.split(2)[1] @ w), (3, [2])),
        (lambda x, w: (x @ w, x @ w.t()), (2, [])),
        (lambda x, w: ((x * 1) @ w, (x * 1.0) @ w), (2, [])),
        (lambda x, w: (x.bernoulli(0.5) @ w, x.bernoulli(0.5) @ w), (2, [])),
        (lambda x, w: (x @ w, x.add_(1) @ w), (2, [])),
        (lambda x, w: (x.softmax(0) @ w, x.softmax(1) @ w), (2, [])),
        (lambda x, w: x + w, (0, [])),
    ],
)
def test_what_is_equal(function, found):
    assert groups(function, (4, 4), (4, 4)) == found
