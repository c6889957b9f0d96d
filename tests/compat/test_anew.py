"""Compiling a Dynamo graph at a call, while other threads call what is compiled."""

from __future__ import annotations

import contextlib
import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.torch_version import TorchVersion

from loka_compile import compat


def test_other_threads_may_call_while_one_compiles(fresh_dynamo: None) -> None:
    """torch.fx marks the whole process as tracing, and torch.compile refuses calls then; since torch 2.14 only those of
    the thread that traces."""
    graphs, x = [], torch.ones(3)
    compiled = torch.compile(lambda x: x + 1, backend=lambda gm, inputs: graphs.append(gm) or gm.forward)
    compiled(x)

    def calls_elsewhere(y: torch.Tensor) -> torch.Tensor:
        with ThreadPoolExecutor(1) as pool:
            assert torch.equal(pool.submit(compiled, x).result(), x + 1)
        return y

    refused = functools.partial(pytest.raises, RuntimeError, match="symbolically trace")
    elsewhere = refused if TorchVersion(torch.__version__) < (2, 14) else contextlib.nullcontext
    with elsewhere():
        torch.fx.symbolic_trace(calls_elsewhere)
    with compat.compiling_anew(graphs[0], [x]):
        torch.fx.symbolic_trace(calls_elsewhere)
        with refused():  # this thread may not
            torch.fx.symbolic_trace(lambda y: compiled(x))
    with elsewhere():
        torch.fx.symbolic_trace(calls_elsewhere)
    assert len(graphs) == 1


def test_one_compiles_at_a_time(fresh_dynamo: None) -> None:
    """What torch.fx patches while it traces is the process's: two at once left it marked as tracing for good."""
    graphs = []
    torch.compile(lambda x: x + 1, backend=lambda gm, inputs: graphs.append(gm) or gm.forward)(torch.ones(3))
    inside: list[int] = []

    def compile_one(number: int) -> None:
        with compat.compiling_anew(graphs[0], [torch.ones(3)]):
            inside.append(number)
            torch.fx.symbolic_trace(lambda x: x + 1)
            assert inside.pop() == number and not inside

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(compile_one, range(40)))
