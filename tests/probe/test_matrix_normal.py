"""Matrix normals: a still weight is drawn as it is, a moving one with the spread between and along its columns."""

import pytest
import torch

from loka_compile.probe.gaussian import MEMORY
from loka_compile.probe.matrix_normal import COLUMNS, FlipFlop, MatrixNormal


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def learned(weights, features=None):
    learner = FlipFlop(features or weights[0].shape[1], generator())
    for weight in weights:
        learner.add(weight)
    return learner.result()


def correlation(matrix):
    scale = matrix.diagonal().sqrt()
    return matrix / torch.outer(scale, scale)


def test_a_weight_that_stays_is_drawn_as_it_is():
    weight = torch.randn(40, 16, generator=generator())
    found = learned([weight] * 5)
    assert torch.equal(found.draw(40, generator(1)), weight)
    assert torch.equal(found.draw(100, generator(1))[80:], weight[:20])
    assert torch.equal(found.draw(40, generator(1), torch.tensor([2, 5])), weight[:, [2, 5]])


def test_the_spread_of_a_simulated_matrix_normal_is_found():
    """Rows and columns each have correlations of their own; both come back, and so does their common scale."""
    features, columns, steps = 12, 10, 400
    u = torch.eye(features) + 0.8 * torch.outer(torch.ones(features), torch.ones(features))
    v = torch.diag(torch.linspace(0.5, 2.0, columns))
    left, right = torch.linalg.cholesky(v), torch.linalg.cholesky(u)
    source = generator(3)
    weights = [left @ torch.randn(columns, features, generator=source) @ right.T + 5 for _ in range(steps)]
    found = learned(weights)
    drawn = torch.stack([found.draw(columns, source) for _ in range(2000)]) - found.mean
    along = torch.einsum("snf,sng->fg", drawn, drawn)
    between = torch.einsum("snf,smf->nm", drawn, drawn)
    assert (correlation(along) - correlation(u)).abs().mean() < 0.12
    assert (correlation(between) - correlation(v)).abs().mean() < 0.12
    power = torch.stack(weights).sub(5).square().mean().item()
    assert 0.5 < drawn.square().mean().item() / power < 2


def test_the_mean_follows_a_drifting_weight():
    weights = [torch.full((4, 8), 0.01 * step) for step in range(300)]
    found = learned(weights)
    assert (found.mean - weights[-1]).abs().max() < 0.25


def test_a_large_weight_has_a_diagonal_and_some_of_its_columns():
    features = 600
    assert 4 * features**2 > MEMORY
    source = generator()
    base = torch.randn(1000, features, generator=source)
    found = learned([base + 0.1 * torch.randn(1000, features, generator=source) for _ in range(4)])
    assert found.mean.shape == (COLUMNS, features) and len(found.factor) == 0 and found.diagonal.min() > 0
    spread = (found.draw(COLUMNS, source) - found.mean).std().item()
    assert 0.03 < spread < 0.3


def test_draws_are_finite_whatever_moved():
    still = torch.zeros(6, 9)
    one_column = still.clone()
    one_column[2] = 1e-20
    for weights in ([still, still], [still, one_column], [still + 1e30, still - 1e30]):
        assert learned(weights).draw(6, generator()).isfinite().all()


def test_parts_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match="does not fit"):
        MatrixNormal(torch.zeros(4, 3), torch.zeros(3, 3), torch.zeros(2, 3), torch.zeros(3))
