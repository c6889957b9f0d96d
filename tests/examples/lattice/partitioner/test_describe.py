"""Portfolios: sketches that estimate overlaps, gradients that are the losses'."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from examples.lattice.checks import DataError
from examples.lattice.partitioner import describe
from examples.lattice.partitioner.describe import (
    Portfolio,
    Weights,
    agreement,
    agreements,
    gradient,
    jaccard,
    likeness,
    sketch,
)


def exact(*direction: float) -> torch.Tensor:
    """A gradient (4, 1, P) without noise."""
    return torch.tensor(direction).expand(4, 1, -1)


PLAIN = Portfolio("p", sketch(range(100)), sketch(range(100)), 0.0, 1.0, 1.0, exact(1.0, 0.0))


@pytest.mark.parametrize(("shared", "each"), [(0, 500), (400, 500), (500, 500), (20_000, 30_000), (1000, 50_000)])
def test_overlap_is_estimated_within_its_bounds(shared, each):
    a, b = sketch(range(each)), sketch(range(each - shared, 2 * each - shared))
    true = shared / (2 * each - shared)
    low, estimate, high = jaccard(a, b)
    assert low <= true <= high and low <= estimate <= high
    assert estimate == pytest.approx(true, abs=0.03)


def test_two_that_have_seen_nothing_have_nothing_in_common():
    assert jaccard(sketch([]), sketch([])) == (0, 0, 0) == jaccard(sketch([]), sketch([1]))


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
    other = replace(PLAIN, users=sketch(range(50, 150)), delay=1.0, gradient=exact(1.0, 1.0))
    found = likeness(PLAIN, other, Weights(2, 1, 1))
    assert found.overlap == pytest.approx((1 / 3 + 1) / 2) and found.timing == pytest.approx(0.5)
    assert found.gradient == pytest.approx(2**-0.5)
    assert found.total == pytest.approx((2 * found.overlap + found.timing + found.gradient) / 4)
    assert likeness(PLAIN, other, Weights(1, 0, 0)).total == found.overlap


def test_agreement_is_the_cosine_over_all_moments():
    assert agreement(exact(1, 0), exact(-2, 0)) == -1 and agreement(exact(1, 0), exact(3, 3)) == pytest.approx(2**-0.5)
    then = torch.tensor([[1.0, 0.0], [0.0, 3.0]]).expand(4, 2, 2)
    now = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).expand(4, 2, 2)
    assert agreement(then, now) == pytest.approx(3 / (10 * 2) ** 0.5)


def test_noise_neither_hides_agreement_nor_makes_it_up():
    generator = torch.Generator().manual_seed(0)
    noise = lambda: 3 * torch.randn(8, 50, 20, generator=generator)  # noqa: E731  nine times as long as the signal
    signal = torch.randn(20, generator=generator)
    a, b = (signal + noise() for _ in range(2))
    plain = torch.cosine_similarity(a.flatten(0, 1), b.flatten(0, 1)).mean()
    assert agreement(a, b) == pytest.approx(1, abs=0.15) and plain < 0.2
    across = signal.roll(1) - signal * (signal.roll(1) @ signal) / (signal @ signal)
    assert agreement(a, across + noise()) == pytest.approx(0, abs=0.15)


def test_a_gradient_that_is_chance_agrees_with_nothing():
    chance = torch.stack([torch.ones(1, 3), -torch.ones(1, 3)] * 2)  # its parts contradict each other
    assert agreement(chance, exact(1, 1, 1)) == agreement(exact(1, 1, 1), chance) == agreement(chance, chance) == 0


@pytest.mark.parametrize("drawn", ["at every moment", "once"])
def test_pure_noise_agrees_and_opposes_in_one_pair_of_fifty_at_most(drawn):
    generator = torch.Generator().manual_seed(0)
    moments = 6 if drawn == "at every moment" else 1  # few rows are the same rows at each
    noise = [torch.randn(8, moments, 50, generator=generator).repeat(1, 6 // moments, 1) for _ in range(100)]
    cosines, _ = agreements(noise)
    apart = ~torch.eye(100, dtype=torch.bool)
    assert (cosines[apart].abs() > 0.2).float().mean() < 0.02
    signal = agreements([torch.randn(1, 6, 50, generator=generator) + torch.zeros(8, 1, 1), *noise])[0][0, 1:]
    assert (signal.abs() > 0.2).float().mean() < 0.05  # one that is sure, one that is chance


@pytest.mark.parametrize("cosine", [1.0, 0.5, 0.0, -0.5, -1.0])
def test_true_gradients_above_the_noise_have_their_own_cosine(cosine):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, 3, 200, generator=generator)  # noqa: E731
    a, b = torch.linalg.qr(draw(2).flatten(1).T)[0].T.unflatten(1, (3, 200))
    b = cosine * a + (1 - cosine**2) ** 0.5 * b
    length = 0.3 * 600**0.5  # 0.3 of a fold's noise
    found = [agreements([length * a + draw(8), length * b + draw(8)]) for _ in range(60)]
    assert all(bool(known.all()) for _, known in found)
    each = torch.stack([cosines[0, 1] for cosines, _ in found])
    assert float(each.mean()) == pytest.approx(cosine, abs=0.05) and float((each - cosine).abs().max()) < 0.4


def test_a_gradient_that_is_not_known_is_said():
    chance = torch.stack([torch.ones(1, 2), -torch.ones(1, 2)] * 2)
    assert likeness(PLAIN, replace(PLAIN, gradient=chance), Weights()).known == 0
    assert likeness(PLAIN, PLAIN, Weights()).known == 1 == likeness(PLAIN, PLAIN, Weights()).gradient
    assert agreements([PLAIN.gradient, chance])[1].tolist() == [True, False]


@pytest.mark.parametrize("shape", [(6,), (2, 3, 6), (3, 3, 6), (4, 6)])
def test_gradients_of_the_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"p: a gradient is .* of 4 folds or more"):
        replace(PLAIN, gradient=torch.zeros(shape))
    with pytest.raises(ValueError, match="agreement: a gradient is"):
        agreement(torch.zeros(shape), torch.zeros(shape))


def test_gradients_are_compared_where_they_have_one_shape():
    with pytest.raises(ValueError, match="where they have one shape"):
        agreement(torch.ones(4, 3, 6), torch.ones(4, 1, 6))


def test_a_gradient_is_the_losses_and_touches_nothing():
    torch.manual_seed(0)
    module, head = nn.Linear(3, 2), nn.Linear(2, 1)
    x = torch.randn(5, 3)
    found = gradient(head(module(x)).square().mean(), module)
    assert all(p.grad is None for p in module.parameters())
    head(module(x)).square().mean().backward()
    torch.testing.assert_close(found, torch.cat([p.grad.flatten() for p in module.parameters()]))
    assert gradient(head.weight.sum(), module).tolist() == [0.0] * 8  # a loss that does not reach it


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="p: revenue is a number of at least 0, got -1"):
        replace(PLAIN, revenue=-1)
    with pytest.raises(ValueError, match="p: delay"):
        replace(PLAIN, delay=float("nan"))
    with pytest.raises(ValueError, match="not all 0"):
        describe.Weights(0, 0, 0)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("name", ["overlap", "timing", "gradient"])
def test_weights_that_are_no_numbers_are_refused(name, wrong):
    with pytest.raises(ValueError, match="weights are numbers of at least 0"):
        Weights(**{name: wrong})


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_gradients_that_are_no_numbers_agree_with_nobody(wrong):
    real, other = torch.ones(4, 3, 4), torch.ones(4, 3, 4)
    other[0, 1, 2] = wrong
    for pair in ((real, other), (other, real)):
        with pytest.raises(DataError, match="finite gradients"):
            agreement(*pair)
