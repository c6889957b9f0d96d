"""torch.compile of code that others compile too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from loka_compile import compat


def test_compilations_of_others_do_not_count(fresh_dynamo: None) -> None:
    compiled: list[tuple[int, ...]] = []

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        compiled.append(tuple(inputs[0].shape))
        return gm.forward

    def double(x: Tensor) -> Tensor:
        return x * 2

    with torch._dynamo.config.patch(recompile_limit=1):
        torch.compile(double, backend="eager")(torch.ones(2))
        apart = compat.compile_apart(double, backend=backend, recompile_limit=3, dynamic=False)
        for size in (2, 3, 4):
            assert torch.equal(apart(torch.ones(size)), torch.full((size,), 2.0))
        assert compiled == [(2,), (3,), (4,)] and torch._dynamo.config.recompile_limit == 1
