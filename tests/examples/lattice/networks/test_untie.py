"""Untied copies: each row takes its domain's, copies start equal and part, one is kept for serving."""

import pytest
import torch
from torch import nn

from examples.lattice.networks.untie import NONE, Untied, among, for_domain


def untied():
    torch.manual_seed(0)
    of = Untied(lambda: nn.Linear(4, 3), (0, 1, 1))
    nn.init.normal_(of.copies[1].weight)
    return of


def test_each_row_takes_its_domains_copy():
    of, x, domain = untied(), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 2, 1])
    expected = torch.stack([of.copies[min(int(d), 1)](row) for d, row in zip(domain, x, strict=True)])
    torch.testing.assert_close(of(domain, x), expected)


def test_only_the_own_copy_learns():
    of = untied()
    of(torch.tensor([0, 0]), torch.randn(2, 4)).sum().backward()
    assert of.copies[0].weight.grad.any() and not of.copies[1].weight.grad.any()


def test_copies_start_equal():
    first, second = Untied(lambda: nn.Linear(4, 3), (0, 1)).copies
    assert torch.equal(first.weight, second.weight) and first.weight is not second.weight


def test_one_copy_is_kept_for_a_domain():
    of, x = nn.Sequential(untied()), torch.randn(5, 4)
    for domain in range(3):
        served = for_domain(of, domain)
        assert len(served[0].copies) == 1
        for asked in range(3):  # whoever asks
            at = torch.full((5,), asked)
            torch.testing.assert_close(served[0](at, x), of[0](torch.full((5,), domain), x))
    assert len(of[0].copies) == 2


def test_domains_that_are_not_served_have_no_copy():
    assert among((0, 1, 2, 1), (0, 1, 3)) == (0, 1, NONE, 1)
    assert among((0, 1, 2, 1), (2,)) == (NONE, NONE, 0, NONE)
    of, x = Untied(lambda: nn.Linear(4, 3), (NONE, 0, 1)), torch.randn(3, 4)
    nn.init.normal_(of.copies[1].weight)
    assert len(of.copies) == 2 and of(torch.tensor([0, 1, 2]), x).shape == (3, 3)
    for domain, copy in ((1, 0), (2, 1)):
        own = of.copies[copy](x)
        torch.testing.assert_close(for_domain(nn.Sequential(of), domain)[0](torch.tensor([domain] * 3), x), own)
    for domain in (-1, 0, 3):
        with pytest.raises(ValueError, match=rf"made for, one of \[1, 2\], got {domain}"):
            for_domain(nn.Sequential(of), domain)


def test_gaps_are_refused():
    with pytest.raises(ValueError, match=r"without gaps, got \(0, 2\)"):
        Untied(lambda: nn.Linear(4, 3), (0, 2))
