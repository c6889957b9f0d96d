"""Parameter untying: domains whose gradients conflict get their own copies of chosen weights.

In training every copy runs on all rows, and each row takes its domain's: rows of all domains stay in one batch, whose
shape does not depend on them. A served request has one domain, so `for_domain` keeps one copy and costs what a tied
model costs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

NONE = -1
"""The copy of a domain that a network does not serve."""


class Untied(nn.Module):
    """Copies of a module, which start equal. copies[domain] is the number of the copy that a domain uses, NONE where it
    has none; what the module makes of such a domain's rows means nothing."""

    def __init__(self, make: Callable[[], nn.Module], copies: tuple[int, ...]) -> None:
        super().__init__()
        used = sorted({*copies} - {NONE})
        if not used or used != list(range(len(used))):
            raise ValueError(f"copies are numbered from 0 without gaps, got {copies}")
        first = make()
        self.copies = nn.ModuleList([first, *(copy.deepcopy(first) for _ in range(max(copies)))])
        self.register_buffer("of_domain", torch.tensor(copies), persistent=False)

    def forward(self, domain: Tensor, *inputs: Tensor) -> Tensor:
        """What each row's own copy makes of it; domain (B,)."""
        first, *others = (each(*inputs) for each in self.copies)
        if not others:
            return first
        own = self.of_domain[domain].view(-1, *(1,) * (first.dim() - 1))
        for number, other in enumerate(others, start=1):
            first = torch.where(own == number, other, first)
        return first

    def keep(self, domain: int) -> None:
        """Drops all copies but that of one domain. Raises ValueError if it has none."""
        own = self.of_domain.tolist()
        if not 0 <= domain < len(own) or own[domain] == NONE:
            served = [each for each, number in enumerate(own) if number != NONE]
            raise ValueError(f"expected a domain that the network was made for, one of {served}, got {domain}")
        self.copies = nn.ModuleList([self.copies[own[domain]]])
        self.of_domain = torch.zeros_like(self.of_domain)


def among(copies: tuple[int, ...], served: tuple[int, ...]) -> tuple[int, ...]:
    """The copy of each domain when these alone are served: NONE for others, the numbers without gaps."""
    used = sorted({copies[domain] for domain in served})
    return tuple(used.index(copy) if domain in served else NONE for domain, copy in enumerate(copies))


def for_domain(model: nn.Module, domain: int) -> nn.Module:
    """The model as it serves one domain. Raises ValueError for one that it has no weights for."""
    served = copy.deepcopy(model)
    for module in served.modules():
        if isinstance(module, Untied):
            module.keep(domain)
    return served
