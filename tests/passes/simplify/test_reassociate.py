"""reassociate: which order it finds, for which sizes, where it stays out, and the same numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from loka_compile.passes.simplify.reassociate import Reassociate
from tests.passes.exact import agrees, named, rewritten

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

B, N, D, K = 5, 24, 7, 3
FORMS = {
    "@": lambda x, y: (x @ x.transpose(1, 2)) @ y,
    "mT": lambda x, y: x @ x.mT @ y,
    "named": lambda x, y: x @ torch.transpose(input=x, dim0=1, dim1=2) @ y.transpose(dim0=1, dim1=2).mT,
    "methods": lambda x, y: x.matmul(x.permute(0, 2, 1)).matmul(y),
    "bmm": lambda x, y: torch.bmm(torch.bmm(x, x.transpose(-1, -2)), y),
    "einsum": lambda x, y: torch.einsum("bnd,bdm->bnm", x, x.mT) @ y,
    "einsum of both": lambda x, y: torch.einsum("bij, bjk -> bik", x @ x.mT, y),
    "transposed twice": lambda x, y: (x @ x.mT).mT @ y,
    "from the right": lambda x, y: (y.mT @ (x @ x.mT)).mT,
}


class Fn(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, *args):
        return self.fn(*args)


def xy(*shape):
    torch.manual_seed(0)
    return torch.randn(*shape, N, D), torch.randn(*shape, N, K)


@pytest.mark.parametrize("form", FORMS)
def test_the_interaction_of_wukong_as_anyone_writes_it(form):
    seen = agrees(Reassociate(), Fn(FORMS[form]), *xy(B))
    assert [did for _, did in seen.did] in (["(AB)C as A(BC)"], ["A(BC) as (AB)C"])
    sizes = [tuple(n.meta["example_value"].shape[1:]) for n in named(seen.graphs[0], torch.matmul)]
    assert sorted(sizes)[0] in [(D, K), (K, D)]


def test_a_chain_whose_factor_is_a_chain_that_was_rewritten():
    def forward(x, y, z):
        p = x @ x.mT @ y
        return p @ p.mT @ z

    x, y = xy(B)
    seen = agrees(Reassociate(), Fn(forward), x, y, torch.randn(N, 2))
    assert len(seen.did) == 2


def test_any_batch():
    x, y = xy(B)
    seen = agrees(Reassociate(), Fn(lambda x, y: x @ x.mT @ y), x, y[0], dynamic=True)
    assert seen.did == [("self", "(AB)C as A(BC)")]


def test_matrices_and_longer_chains():
    sizes = [30, 35, 15, 5, 10, 20, 25]
    matrices = [torch.randn(m, n) for m, n in pairwise(sizes)]
    seen = agrees(Reassociate(), Fn(lambda a, b, c, d, e, f: a @ b @ c @ d @ e @ f), *matrices)
    assert seen.did == [("self", "((((AB)C)D)E)F as (A(BC))((DE)F)")]  # Cormen et al., 15.2


def test_a_size_that_decides_is_guarded():
    fn = lambda x, y: x @ x.mT @ y  # noqa: E731
    seen = rewritten(Reassociate(), fn, torch.randn(31, D), torch.randn(31, K), dynamic=True)
    assert [did for _, did in seen.did] == ["(AB)C as A(BC)"]
    seen.call(torch.randn(37, D), torch.randn(37, K))
    assert len(seen.results) == 1
    x, y = torch.randn(2, D), torch.randn(2, K)
    torch.testing.assert_close(seen.call(x, y), fn(x, y))
    assert len(seen.results) == 2 and not seen.results[1].rewrites


NOT = {
    "no other order is cheaper than its": lambda x, y: x @ (x.mT @ y),
    "the product p inside it has other users": lambda x, y: ((p := x @ x.mT) @ y, p.sum()),
    "softmax stands between two products": lambda x, y: (x @ x.mT).softmax(-1) @ y,
    "relu stands between two products": lambda x, y: torch.relu(x @ x.mT) @ y,
}


@pytest.mark.parametrize("reason", NOT)
def test_what_stays_and_why(reason):
    seen = rewritten(Reassociate(), NOT[reason], *xy(B))
    assert not seen.did and any(reason in each for each in seen.reasons), seen.reasons


def test_what_is_written_in_place_stays():
    def scribbled(x, y):
        p = x @ x.mT
        x.mul_(2)
        return p @ y

    x, y = xy(B)
    expected = scribbled(x.clone(), y)
    seen = rewritten(Reassociate(), scribbled, x, y)
    assert not seen.did and "in place" in seen.reasons[0]
    torch.testing.assert_close(seen.out, expected)


@given(st.lists(st.integers(1, 12), min_size=3, max_size=6), st.integers(0, 2), st.randoms(use_true_random=False))
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.generate],  # each example is compiled: shrinking one takes minutes
)
def test_any_chain_in_any_order(sizes, batched, random):
    torch._dynamo.reset()
    torch.manual_seed(0)
    factors = [torch.randn(*[4] * (batched and i % 2), m, n) for i, (m, n) in enumerate(pairwise(sizes))]
    cuts = random.sample(range(len(factors) - 1), len(factors) - 1)

    def chain(*matrices):
        parts = [[i, i, x] for i, x in enumerate(matrices)]
        for cut in cuts:  # joins the two parts that meet there
            left = next(part for part in parts if part[1] == cut)
            right = next(part for part in parts if part[0] == cut + 1)
            left[1], left[2] = right[1], left[2] @ right[2]
            parts.remove(right)
        return parts[0][2]

    agrees(Reassociate(), Fn(chain), *factors)
