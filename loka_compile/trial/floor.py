"""A floor under a graph's time: what its products and its attention take alone, each at its fastest. No code of the
graph is faster."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from loka_compile import compat
from loka_compile.dispatch import kept_times, timing
from loka_compile.graph.sites import size
from loka_compile.spec.site import Site
from loka_compile.spec.sizes import Sizes
from loka_compile.trial.budget import Trial

LIBRARY = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default}
"""Kernels of PyTorch that Inductor calls as they are, beside products."""


def floor_of(trial: Trial, inputs: Sequence[Any]) -> Callable[[], float]:
    """The floor of a graph that may be traced, once it is asked for."""
    return functools.cache(lambda: floor_us(trial.sites, inputs) + library_us(trial.graph, inputs))


def library_us(graph: fx.Graph, inputs: Sequence[Any]) -> float:
    """Microseconds of the calls of LIBRARY in an inference graph; equal ones count once."""
    nodes = [node for op in LIBRARY for node in graph.find_nodes(op="call_function", target=op)]
    calls = {repr((node.target, node.args, node.kwargs)): node for node in nodes}
    return sum(_call_us(node, inputs) for node in calls.values())


def _call_us(node: fx.Node, inputs: Sequence[Any]) -> float:
    """The time of one call on zeros; the values do not matter."""

    def described(argument: fx.Node) -> Any:
        fake = argument.meta["val"]
        sizes, strides = ([compat.hint_of(size(x), inputs) for x in each] for each in (fake.shape, fake.stride()))
        return sizes, strides, fake.dtype

    def zeros(argument: fx.Node) -> Any:
        sizes, strides, dtype = described(argument)
        return torch.empty_strided(sizes, strides, dtype=dtype, device="cpu").zero_()

    def run() -> Callable[[], Any]:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), zeros)
        return lambda: node.target(*args, **kwargs)

    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda argument: repr(described(argument)))
    return timing.call_us(kept_times.key("call", node.target, args, kwargs), run)


def floor_us(sites: Iterable[Site], inputs: Sequence[Any]) -> float:
    """Microseconds of the products of a graph on these inputs. Equal ones count once, as Inductor computes them once;
    those with a dimension of 1, which it may write into what stands around them, count nothing."""
    seen, total = set(), 0.0
    for site in sites:
        sizes = Sizes(*(compat.hint_of(size, inputs) for size in (site.batch, site.M, site.N, site.K)))
        operands = site.op, site.lhs.tensor or site.key, site.rhs.tensor or site.key
        counts = site.dtype.is_floating_point and sizes.batch and min(sizes.M, sizes.N, sizes.K) > 1
        if operands in seen or not counts:
            continue
        seen.add(operands)
        total += timing.keep_us(site, sizes)
    return total
