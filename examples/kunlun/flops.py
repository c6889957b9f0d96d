"""Counting the FLOPs of a graph as it runs, after all passes.

loka runs a graph's first calls op by op, to measure them; the profiler sees the shapes of every operator then, forward
and backward, and the matrix products among them are counted: 2 FLOPs a multiplication and addition.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from examples.apart import APART

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler says on stderr when it starts and stops
MEASURED = 4  # calls that run op by op: one that compiles, one that is counted, and room for a recompilation


def mm(a: list[int], b: list[int]) -> int:
    """(..., M, K) by (..., K, N)."""
    return 2 * prod(a) * b[-1]


def attention(q: list[int], k: list[int], v: list[int]) -> int:
    """Scores and their product with the values."""
    return 2 * prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


COUNTS: Mapping[str, Callable[[list[list[int]]], int]] = {
    "aten::mm": lambda shapes: mm(shapes[0], shapes[1]),
    "aten::bmm": lambda shapes: mm(shapes[0], shapes[1]),
    "aten::addmm": lambda shapes: mm(shapes[1], shapes[2]),
    "aten::baddbmm": lambda shapes: mm(shapes[1], shapes[2]),
    "aten::_scaled_dot_product_flash_attention_for_cpu": lambda shapes: attention(*shapes[:3]),
    # Of the five products of its backward one computes the scores again.
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": lambda s: 5 * attention(*s[1:4]) // 2,
}


def count(call: Callable[[], object]) -> int:
    """FLOPs of the matrix products and attentions that this call runs one by one."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        call()
    return sum(COUNTS[e.name](e.input_shapes) for e in seen.events() if e.name in COUNTS)


def of_graph(model: nn.Module, options: Mapping[str, object], step: Callable[[Callable[..., object]], object]) -> int:
    """FLOPs of `step` with the model as loka's passes leave it under these options, without generating code."""
    by_op = {**options, "recipes": (), "measure_calls": MEASURED}
    by_op["passes"] = {**options.get("passes", {}), "mix_tokens": False}  # which may leave no product to be counted
    call = torch.compile(model, backend="loka", options=by_op, **APART)
    step(call)  # captures the graph and runs the passes
    return count(lambda: step(call))
