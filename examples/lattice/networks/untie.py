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


class Untied(nn.Module):
    """Copies of a module, which start equal. copies[domain] is the number of the copy that a domain uses."""

    def __init__(self, make: Callable[[], nn.Module], copies: tuple[int, ...]) -> None:
        super().__init__()
        if sorted(set(copies)) != list(range(len(set(copies)))):
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
        """Drops all copies but that of one domain."""
        self.copies = nn.ModuleList([self.copies[int(self.of_domain[domain])]])
        self.of_domain = torch.zeros_like(self.of_domain)


def for_domain(model: nn.Module, domain: int) -> nn.Module:
    """The model as it serves one domain."""
    served = copy.deepcopy(model)
    for module in served.modules():
        if isinstance(module, Untied):
            module.keep(domain)
    return served
