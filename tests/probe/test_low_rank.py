"""Low rank plus diagonal: mean and variances exactly, large directions nearly, in any grouping of the batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.probe.low_rank import RANK, LowRank, StreamingLowRank


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def learned(*batches):
    learner = StreamingLowRank(batches[0].shape[1])
    for batch in batches:
        learner.add(batch)
    return learner.result()


def covariance(model):
    return model.factor.double().T @ model.factor.double() + model.diagonal.double().diag()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(1, 20), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_mean_and_variances_are_those_of_the_whole(sizes, features, seed):
    batches = [normal(size, features, seed=seed + i) * (i + 1) + i for i, size in enumerate(sizes)]
    found, whole = learned(*batches), torch.cat(batches).double()
    torch.testing.assert_close(found.mean.double(), whole.mean(0), rtol=1e-5, atol=1e-5)
    variances = whole.var(0) if len(whole) > 1 else torch.zeros(features, dtype=torch.float64)
    torch.testing.assert_close(covariance(found).diagonal(), variances, rtol=0.02, atol=1e-5)


def test_large_directions_survive_many_batches():
    """Three directions stand out of 200 features: their covariance is found, batch by batch."""
    directions = torch.linalg.qr(normal(200, 3)).Q * torch.tensor([30.0, 20.0, 10.0])
    batches = [normal(100, 3, seed=i) @ directions.T + normal(100, 200, seed=100 + i) for i in range(20)]
    found, whole = covariance(learned(*batches)), torch.cat(batches).double().T.cov()
    top = torch.linalg.eigh(whole).eigenvectors[:, -3:]
    kept = (top.T @ found @ top).diagonal()
    torch.testing.assert_close(kept, (top.T @ whole @ top).diagonal(), rtol=0.03, atol=0)


def test_the_order_of_the_batches_hardly_matters():
    batches = [normal(40, 90, seed=i) @ normal(90, 90, seed=7) + i for i in range(6)]
    one, two = covariance(learned(*batches)), covariance(learned(*batches[::-1]))
    assert (one - two).norm() < 0.05 * one.norm()


def test_merging_is_adding():
    one, two, both = (StreamingLowRank(8) for _ in range(3))
    a, b = normal(30, 8), normal(50, 8, seed=1) + 2
    one.add(a), two.add(b), both.add(a), both.add(b)
    one.merge(two)
    torch.testing.assert_close(covariance(one.result()), covariance(both.result()), rtol=0.02, atol=1e-3)


def test_it_takes_little_memory_for_many_features():
    """123,200 features occur; a whole covariance would take 60 GB."""
    found = learned(*(normal(4, 123_200, seed=i) for i in range(20)))
    assert found.features == 123_200 and len(found.factor) <= RANK
    assert found.draw(3, torch.Generator().manual_seed(0)).isfinite().all()


@given(st.integers(2, 12), st.integers(0, 9))
@settings(deadline=None, max_examples=20)
def test_draws_have_its_mean_and_covariance(features, seed):
    found = learned(normal(60, features, seed=seed) @ normal(features, features, seed=seed + 50) + 3)
    drawn = found.draw(20_000, torch.Generator().manual_seed(1))
    spread = max(1.0, covariance(found).diagonal().max().item())
    torch.testing.assert_close(drawn.mean(0), found.mean, atol=0.06 * spread**0.5, rtol=0)
    torch.testing.assert_close(drawn.T.cov().double(), covariance(found), atol=0.1 * spread, rtol=0)


def test_one_row_is_drawn_as_it_is():
    assert learned(torch.tensor([[1.0, -2.0]])).draw(3, torch.Generator()).tolist() == [[1, -2]] * 3


def test_the_largest_numbers_stay_finite():
    found = learned(torch.tensor([[1e38, 1.0], [-1e38, 2.0]]))
    assert found.mean.isfinite().all() and found.factor.float().isfinite().all()


def test_parts_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match="do not fit"):
        LowRank(torch.zeros(3), torch.zeros(2, 4).bfloat16(), torch.zeros(3))
