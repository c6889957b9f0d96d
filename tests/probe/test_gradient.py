"""Gradients: the share of zero rows, the spread of the others' norms, and their directions."""

import pytest
import torch

from loka_compile.probe.gradient import GradientLearner


def rows_like(count, zero_share, log_std, generator):
    directions = torch.randn(count, 16, generator=generator) @ torch.diag(torch.linspace(0.1, 2, 16))
    rows = directions / directions.norm(dim=1, keepdim=True)
    norms = (-8 + log_std * torch.randn(count, 1, generator=generator)).exp()
    return rows * norms * (torch.rand(count, 1, generator=generator) >= zero_share)


@pytest.mark.parametrize("zero_share", [0.0, 0.7])
@pytest.mark.parametrize("log_std", [0.0, 2.0])
def test_draws_look_like_what_was_seen(zero_share, log_std):
    generator, learner = torch.Generator().manual_seed(0), GradientLearner(16)
    seen = torch.cat([rows_like(size, zero_share, log_std, generator) for size in (500, 3000, 20)])
    for batch in seen.split(700):
        learner.add(batch)
    drawn = learner.result().draw(20_000, generator)
    assert (drawn.norm(dim=1) == 0).double().mean() == pytest.approx(zero_share, abs=0.02)
    for rows in (seen, drawn):
        logs = rows[rows.norm(dim=1) > 0].norm(dim=1).log()
        assert logs.mean().item() == pytest.approx(-8, abs=0.15)
        assert logs.std().item() == pytest.approx(log_std, abs=0.3)  # a direction's norm is 1 on average
    unit = lambda x: torch.nn.functional.normalize(x[x.norm(dim=1) > 0]).double()  # noqa: E731
    torch.testing.assert_close(unit(drawn).var(0), unit(seen).var(0), rtol=0.35, atol=0.01)


def test_nothing_but_zeros():
    learner = GradientLearner(4)
    learner.add(torch.zeros(9, 4))
    assert learner.result().draw(5, torch.Generator()).abs().max() == 0
