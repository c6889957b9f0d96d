"""What the tests of sessions share: a small network compiled online, its sessions, and inputs under which it strays."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch._dynamo.utils import counters

from examples.apart import APART
from loka_compile.inspect.compiled import graphs_of

EAGER_TO_LOWER = {"target": "h100", "min_speedup": 0, "recipes": ("fp8_tensorwise",), "max_output_error": 0.2}
"""Options under which the little models here are lowered, whatever this machine is."""
WATCHFUL = {**EAGER_TO_LOWER, "max_probe_overhead": 1e6}


def mlp(seed=0, width=32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 16))


def online_compile(model, **options):
    return torch.compile(model, backend="loka", options={**EAGER_TO_LOWER, **options}, **APART)


def sessions_of(compiled):
    return [graph.status.__self__ for graph in graphs_of(compiled)]


def compilations():
    return counters["stats"]["unique_graphs"]


def drift(compiled, x, calls):
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        for _ in range(calls):
            compiled(x)
    return [str(warning.message) for warning in caught if "strayed" in str(warning.message)]


def outliers(x):
    """One huge value sets the scale of the whole tensor: everything else is lost in FP8."""
    y = x.clone()
    y[0, 0] = 1e9
    return y
