"""A tensor that lies otherwise in memory: who can tell is given it laid out as it was, and nobody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from examples.apart import APART
from loka_compile.graph.reader import read
from loka_compile.passes import Context
from loka_compile.passes.simplify.mix_tokens import MixTokens
from loka_compile.spec.plan import Plan
from tests.passes.exact import named

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Mixed(nn.Module):
    """A linear over the tokens, whose result lies transposed, and what is done with it."""

    def __init__(self, behind: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.mix, self.behind = nn.Linear(5, 4), behind

    def forward(self, x: Tensor) -> Any:
        return self.behind(self.mix(x.transpose(1, 2)).transpose(1, 2))


def mixed(behind: Callable[[Tensor], Any]) -> tuple[fx.Graph, list[Tensor], list[Tensor]]:
    """(the graph after mix_tokens, its outputs, eager mode's), from the same seed."""
    module, x, graphs = Mixed(behind), torch.randn(3, 5, 16), []

    def backend(gm: fx.GraphModule, _: Any) -> Callable[..., Any]:
        result = MixTokens()(read(gm.graph), Context(Plan("h100", {}), "cpu"))
        assert len(result.rewrites) == 1
        graphs.append(gm.graph)
        gm.recompile()
        return gm

    outs = []
    for each in (module, torch.compile(module, backend=backend, **APART)):
        torch.manual_seed(1)
        out = each(x)
        outs.append(list(out) if isinstance(out, tuple | list) else [out])
    return graphs[0], outs[1], outs[0]


DRAWN: dict[str, Callable[[Tensor], Any]] = {
    "dropout": lambda y: F.dropout(y, 0.5, True) * 2,
    "of a view": lambda y: F.dropout(y.mT, 0.5, True).flatten(1),
    "behind a relu": lambda y: F.dropout((y + 1).relu(), 0.5, True).sum(1),
    "behind a cast": lambda y: F.dropout(y.double().mT, 0.5, True).sum(1),
    "rand_like": lambda y: (y + torch.rand_like(y)).sum(-1),
    "randn_like of a product": lambda y: torch.randn_like(y * 2).mean(1),
    "bernoulli": lambda y: torch.bernoulli(y.sigmoid()).sum(1),
    "alpha_dropout": lambda y: F.alpha_dropout(y, 0.5, True).flatten(1),
    "filled in place": lambda y: torch.empty_like(y).uniform_().sum(1),
}


@pytest.mark.parametrize("name", DRAWN)
def test_what_draws_does_so_in_the_same_order(name: str) -> None:
    _, [found], [wanted] = mixed(DRAWN[name])
    torch.testing.assert_close(found, wanted)


def _copied(y: Tensor, copy: Callable[[Tensor], Tensor]) -> Any:
    z = copy(y)
    z.add_(1)
    return y * 2, z * 3


COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda y: y.contiguous(),
    "flatten": lambda y: y.flatten(1),
    "reshape": lambda y: y.reshape(-1),
    "of a relu": lambda y: y.relu().contiguous(),
    "clone": lambda y: y.clone(memory_format=torch.contiguous_format),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_that_is_written_stays_one(name: str) -> None:
    _, found, wanted = mixed(lambda y: _copied(y, COPIES[name]))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_a_view_that_is_written_stays_one() -> None:
    def behind(y: Tensor) -> Any:
        z = y + 1
        z.transpose(1, 2).view(3, -1).mul_(2)
        return z * 3

    _, [found], [wanted] = mixed(behind)
    torch.testing.assert_close(found, wanted)


def test_copies_that_are_handed_out_beside_what_they_are_of_stay_copies() -> None:
    _, found, wanted = mixed(lambda y: (y, y.contiguous(), y.flatten(1)))
    assert len({each.untyped_storage()._cdata for each in found}) == 3
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
        assert a.stride() == b.stride()


def test_views_by_strides_behind_other_work() -> None:
    _, found, wanted = mixed(lambda y: ((y + 1).as_strided((4,), (2,)), y.relu().mT.view(3, -1), y.abs()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
        assert a.stride() == b.stride()


def test_nothing_is_copied_where_nobody_can_tell() -> None:
    def behind(y: Tensor) -> Any:
        flat = (y.relu() + 1).flatten(1)
        return F.dropout(F.layer_norm(flat, (64,)), 0.5, True), y.contiguous() @ torch.ones(16, 2), y.mT.reshape(3, -1)

    graph, found, wanted = mixed(behind)
    assert len(named(graph, "contiguous")) == 1  # the model's own
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
