"""Reservoirs are uniform samples; draws have the reservoir's mean and covariance."""

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.graph.site import Site
from loka_compile.probe.distribution import (
    MAX_ROWS,
    MAX_VALUES,
    SAVED_ROWS,
    Gaussian,
    Reservoir,
    capacity,
    generator_for,
    sample_dim,
    sample_rows,
)


def fill(*tensors, seed=0):
    generator, reservoir = torch.Generator().manual_seed(seed), Reservoir()
    for tensor in tensors:
        reservoir.add(*sample_rows(tensor, -2, generator))
    return reservoir


@given(st.integers(0, 10**6))
def test_capacity_is_bounded(features):
    assert 2 <= capacity(features) <= MAX_ROWS
    assert capacity(features) * features <= max(MAX_VALUES, 2 * features)


def test_samples_run_where_the_batch_runs():
    one = sympy.Integer(1)

    def site(role):
        return Site("x", "mm", role, one, one, one, one, torch.float32)

    assert [sample_dim(site("output"), side) for side in ("lhs", "rhs")] == [-2, -1]
    assert [sample_dim(site("grad_input"), side) for side in ("lhs", "rhs")] == [-2, -1]
    assert [sample_dim(site("grad_weight"), side) for side in ("lhs", "rhs")] == [-1, -2]


@pytest.mark.parametrize("dim", [-1, -2])
@given(shape=st.lists(st.integers(1, 6), min_size=2, max_size=3))
@settings(max_examples=30, deadline=None)
def test_rows_are_the_operand_s(dim, shape):
    x = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    rows, keys = sample_rows(x, dim, torch.Generator().manual_seed(0))
    expected = (x.transpose(-1, -2) if dim == -1 else x).flatten(0, -2)
    assert len(rows) == len(keys)
    assert torch.equal(rows.double(), expected)


def test_a_reservoir_is_a_uniform_sample_of_all_batches():
    features = 512
    batches = [torch.full((count, features), float(i)) for i, count in enumerate((3000, 1000, 50, 950))]
    kept = torch.cat([fill(*batches, seed=seed).rows[:, 0] for seed in range(20)])
    shares = [(kept == i).double().mean().item() for i in range(4)]
    assert len(kept) == 20 * capacity(features)
    assert shares == pytest.approx([0.6, 0.2, 0.01, 0.19], abs=0.03)


def test_the_same_seed_draws_the_same():
    x = torch.randn(5000, 64)
    one, two = fill(x), fill(x)
    assert torch.equal(one.rows, two.rows)
    draws = [r.gaussian().draw(5, generator_for(7, "site", "draw")) for r in (one, two)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], one.gaussian().draw(5, generator_for(8, "site", "draw")))
    assert not torch.equal(draws[0], one.gaussian().draw(5, generator_for(7, "other", "draw")))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_draws_have_the_mean_and_covariance_of_the_rows(count, features, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, features, generator=generator) @ torch.randn(features, features, generator=generator) + 3
    gaussian = fill(x).gaussian()
    drawn = gaussian.draw(20_000, generator)
    spread = max(1.0, x.std(0, correction=0).max().item())
    torch.testing.assert_close(drawn.mean(0), x.mean(0), atol=0.06 * spread, rtol=0)
    covariance = x.T.cov(correction=1) if count > 1 else torch.zeros(features, features)
    torch.testing.assert_close(
        drawn.T.cov().reshape(features, features),
        covariance.reshape(features, features),
        atol=0.1 * spread**2,
        rtol=0,
    )


def test_only_some_features():
    gaussian = fill(torch.randn(50, 8)).gaussian()
    picked = torch.tensor([1, 5])
    some = gaussian.draw(9, torch.Generator().manual_seed(0), picked)
    torch.testing.assert_close(some, gaussian.draw(9, torch.Generator().manual_seed(0))[:, picked])


def test_what_does_not_fit_stays_out():
    reservoir = fill(torch.empty(0, 4), torch.ones(3, 4), torch.ones(3, 5), torch.tensor([[1.0, 2, torch.nan, 4]]))
    assert reservoir.rows.tolist() == [[1.0] * 4] * 3
    assert fill(torch.full((2, 2), torch.inf)).gaussian() is None
    assert fill(torch.full((2, 2), torch.inf), torch.ones(1, 3)).gaussian().features == 3


def test_one_row_is_drawn_as_it_is():
    assert fill(torch.tensor([[1.0, -2.0]])).gaussian().draw(3, torch.Generator()).tolist() == [[1, -2]] * 3


def test_the_largest_numbers_stay_finite():
    gaussian = fill(torch.tensor([[3.4e38], [-3.4e38]])).gaussian()
    assert gaussian.mean.isfinite().all()
    assert gaussian.rows.float().isfinite().all()


def test_a_profile_keeps_few_rows():
    gaussian = fill(torch.randn(5000, 16)).gaussian()
    assert isinstance(gaussian, Gaussian)
    assert gaussian.rows.shape == (SAVED_ROWS, 16)
