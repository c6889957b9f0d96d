"""Portfolios: sketches that estimate overlaps, gradients that are the losses'."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from examples.lattice.partitioner import describe
from examples.lattice.partitioner.describe import Portfolio, Weights, cosine, gradient, jaccard, likeness, sketch

PLAIN = Portfolio("p", sketch(range(100)), sketch(range(100)), 0.0, 1.0, 1.0, torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(("shared", "each"), [(0, 500), (400, 500), (500, 500), (20_000, 30_000), (1000, 50_000)])
def test_overlap_is_estimated_within_its_bounds(shared, each):
    a, b = sketch(range(each)), sketch(range(each - shared, 2 * each - shared))
    true = shared / (2 * each - shared)
    low, estimate, high = jaccard(a, b)
    assert low <= true <= high and low <= estimate <= high
    assert estimate == pytest.approx(true, abs=0.03)


def test_a_sketch_counts_an_id_once_and_takes_tensors():
    assert sketch(torch.tensor([3, 3, 4])).get_estimate() == 2
    assert jaccard(sketch([1, 2]), sketch([2, 1, 1])) == (1, 1, 1)


def test_timing_is_the_ratio_of_delays():
    def timing(a, b):
        return likeness(replace(PLAIN, delay=a), replace(PLAIN, delay=b), Weights()).timing

    assert timing(3600, 3600) == 1 and timing(0, 0) == 1
    assert timing(3600, 7200) == pytest.approx(0.5, abs=1e-3) == timing(7200, 3600)
    assert timing(0, 7 * 86_400) < 1e-5


def test_likeness_is_the_weighted_mean():
    other = replace(PLAIN, users=sketch(range(50, 150)), delay=1.0, gradient=torch.tensor([1.0, 1.0]))
    found = likeness(PLAIN, other, Weights(2, 1, 1))
    assert found.overlap == pytest.approx((1 / 3 + 1) / 2) and found.timing == pytest.approx(0.5)
    assert found.gradient == pytest.approx(2**-0.5)
    assert found.total == pytest.approx((2 * found.overlap + found.timing + found.gradient) / 4)
    assert likeness(PLAIN, other, Weights(1, 0, 0)).total == found.overlap


def test_cosines():
    assert cosine(torch.tensor([1.0, 0]), torch.tensor([-2.0, 0])) == -1
    assert cosine(torch.tensor([1.0, 0]), torch.tensor([0.0, 0])) == 0


def test_a_gradient_is_the_mean_of_the_losses_and_touches_nothing():
    torch.manual_seed(0)
    module, head = nn.Linear(3, 2), nn.Linear(2, 1)
    batches = [torch.randn(5, 3) for _ in range(3)]
    losses = [lambda x=x: head(module(x)).square().mean() for x in batches]
    found = gradient(losses, module)
    torch.stack([loss() for loss in losses]).mean().backward()
    torch.testing.assert_close(found, torch.cat([p.grad.flatten() for p in module.parameters()]))
    assert gradient([lambda: head.weight.sum()], module).tolist() == [0.0] * 8  # a loss that does not reach it


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="p: revenue is a number of at least 0, got -1"):
        replace(PLAIN, revenue=-1)
    with pytest.raises(ValueError, match="p: delay"):
        replace(PLAIN, delay=float("nan"))
    with pytest.raises(ValueError, match="not all 0"):
        describe.Weights(0, 0, 0)
