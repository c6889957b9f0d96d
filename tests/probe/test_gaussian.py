"""Welford's Gaussian: whatever the batches, mean and covariance are those of all rows together."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.probe.gaussian import Welford, learner
from loka_compile.probe.low_rank import StreamingLowRank


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


sizes = st.lists(st.integers(1, 30), min_size=1, max_size=6)


@given(sizes, st.integers(1, 12), st.floats(-100, 100), st.integers(-9, 9))
@settings(deadline=None, max_examples=60)
def test_batches_merge_to_the_whole(sizes, features, shift, octaves):
    batches = [normal(size, features, seed=i) * 2.0**octaves + shift for i, size in enumerate(sizes)]
    found = Welford(features)
    for batch in batches:
        found.add(batch)
    whole = torch.cat(batches).double()
    assert found.n == len(whole)
    scale = whole.abs().max().item() + 1e-6
    torch.testing.assert_close(found.mean.double(), whole.mean(0), rtol=0, atol=1e-5 * scale)
    expected = whole.T.cov().reshape(features, features) if len(whole) > 1 else torch.zeros(features, features).double()
    torch.testing.assert_close(found.covariance.double(), expected, rtol=1e-3, atol=1e-4 * scale**2 * 2.0**-4)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
@settings(deadline=None, max_examples=30)
def test_merging_is_associative(a, b, c):
    parts = []
    for seed, size in enumerate((a, b, c)):
        part = Welford(5)
        part.add(normal(size, 5, seed=seed) + seed)
        parts.append(part)
    left, right = Welford(5), Welford(5)
    for part in parts:
        left.merge(part)
    for part in reversed(parts):
        right.merge(part)
    torch.testing.assert_close(left.covariance, right.covariance, rtol=1e-4, atol=1e-5)


def test_up_to_its_rank_the_result_is_exact():
    found = Welford(20)
    found.add(normal(500, 20) @ normal(20, 20, seed=1))
    stored = found.result()
    again = stored.factor.float().T @ stored.factor.float() + stored.diagonal.diag()
    torch.testing.assert_close(again, found.covariance, rtol=0.02, atol=0.02 * found.covariance.abs().max().item())


def test_the_memory_budget_decides():
    assert isinstance(learner(256), Welford) and isinstance(learner(257), StreamingLowRank)
