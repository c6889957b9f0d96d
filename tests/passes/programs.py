"""What the tests of whole programs share: norms and gates by hand, and a program after all passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from examples.apart import APART
from loka_compile import compat
from loka_compile.graph.rerun import is_training
from loka_compile.passes import PIPELINE
from loka_compile.passes.dynamo import Change, run_on_dynamo

EPS = 1e-6


def scale_of(x: Tensor) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)


def gate(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def norm(x: Tensor) -> Tensor:
    return x * scale_of(x)


def after_passes(fn: Callable[..., Any], gpu: bool = False, seen: list[Change] | None = None) -> Callable[..., Any]:
    """`fn` after all passes on Dynamo's graph, run op by op. seen: takes what they did."""

    def backend(gm: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        passes = (*PIPELINE.canonicalize, *PIPELINE.simplify, *PIPELINE.raising)
        device, target = ("cuda", "h100") if gpu else ("cpu", "cpu")
        rewritten, changes = run_on_dynamo(gm, passes, device, target, is_training(inputs))
        if seen is not None:
            seen.extend(changes)
        return compat.capture(
            rewritten, inputs, joint=lambda graph: None, inner=lambda module, _: fx.Interpreter(module).run
        )

    return torch.compile(fn, backend=backend, **APART)
