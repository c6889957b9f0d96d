"""What the tests of calls share: a small network, compiled to be lowered on any CPU, and how it fared."""

from __future__ import annotations

import torch
from torch import nn
from torch._dynamo.utils import counters

import loka_compile as loka
from examples.apart import APART

LOWERS = {"recipes": ("int8_rowwise",), "min_speedup": 0, "race": False}
"""On any CPU, fast or not."""


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))


def compiled_with(model, dynamic=None, fullgraph=False, **options):
    return torch.compile(
        model,
        backend="loka",
        dynamic=dynamic,
        fullgraph=fullgraph,
        options={**LOWERS, **options},
        **APART,
    )


def off(out, reference):
    return float((out - reference).norm() / reference.norm())


def graphs():
    return counters["stats"]["unique_graphs"]


def lowered(compiled):
    return len(loka.plan(compiled).lowered)
