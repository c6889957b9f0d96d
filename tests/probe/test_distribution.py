"""Reservoirs are uniform samples of rows, whatever the batches."""

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.probe.distribution import (
    MAX_ROWS,
    MAX_VALUES,
    Reservoir,
    capacity,
    generator_for,
    sample_dim,
    sample_rows,
)
from loka_compile.spec.site import Site


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
    assert not torch.equal(one.rows, fill(x, seed=1).rows)
    names = (7, "site", "draw"), (8, "site", "draw"), (7, "other", "draw")
    assert len({float(torch.rand((), generator=generator_for(*name))) for name in names}) == 3


def test_what_does_not_fit_stays_out():
    reservoir = fill(torch.empty(0, 4), torch.ones(3, 4), torch.ones(3, 5), torch.tensor([[1.0, 2, torch.nan, 4]]))
    assert reservoir.rows.tolist() == [[1.0] * 4] * 3
    assert fill(torch.full((2, 2), torch.inf)).rows.numel() == 0
    assert fill(torch.full((2, 2), torch.inf), torch.ones(1, 3)).rows.shape == (1, 3)
