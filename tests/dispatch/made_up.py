"""A small model, and plans whose sites have made-up errors."""

from __future__ import annotations

import math

import sympy
import torch
from torch import nn

from loka_compile.spec.decision import Candidate, Decision, Score
from loka_compile.spec.plan import Plan
from loka_compile.spec.site import Site

FP8 = Candidate("fp8_tensorwise", "aten")


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 16)

    def forward(self, x):
        return self.third(self.second(self.first(x).relu()).relu())


def site(name, role="output"):
    return Site(f"{name}#0:{role}", "mm", role, *map(sympy.Integer, (1, 8, 8, 8)), torch.float32, name)


def plan_of(**mere):
    """A plan that lowers each named site, with the error it was scored at."""
    scores = {name: {str(FP8): Score(error, -20 * math.log10(error))} for name, error in mere.items()}
    decisions = [Decision(site(name), FP8, "chosen", scores[name]) for name in mere]
    return Plan("cpu", {decision.site.key: decision for decision in decisions})
