"""Writes in place that nobody could tell from new tensors become new tensors, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from examples.apart import APART
from loka_compile import compat
from loka_compile.graph.apart import write_apart
from loka_compile.graph.reader import read


def apart(fn: Callable[..., Any], *args: Any) -> tuple[Any, set[str]]:
    """What `fn` returns once its writes stand apart, and which operators still write."""
    writing: set[str] = set()

    def backend(gm: fx.GraphModule, _: Any) -> Callable[..., Any]:
        gm = compat.copy_dynamo_graph(gm)
        reading = read(gm.graph)
        write_apart(reading)
        gm.graph.lint()
        gm.recompile()
        again = read(gm.graph)
        assert {n.name for n, fact in again.facts.items() if fact.writes} == {
            n.name for n, fact in reading.facts.items() if fact.writes
        }
        writing.update(reading.op(node) or node.name for node, fact in reading.facts.items() if fact.writes)
        return gm.forward

    return torch.compile(fn, backend=backend, **APART)(*args), writing


def activation(x: Tensor) -> Tensor:
    return F.relu(x * 2, inplace=True) + 1


def residual_stream(x: Tensor) -> Tensor:
    h = x * 2
    for _ in range(2):
        h += torch.tanh(h)
    return h


def after_a_view_was_read(x: Tensor) -> Any:
    h = x * 2
    first = h[0] * 3
    return h.mul_(first).sigmoid_(), first


def an_operator_on_itself(x: Tensor) -> Tensor:
    h = x + 1
    return h.mul_(h)


@pytest.mark.parametrize("fn", [activation, residual_stream, after_a_view_was_read, an_operator_on_itself])
def test_a_write_that_nobody_else_sees_makes_a_tensor_of_its_own(fn: Callable[[Tensor], Any]) -> None:
    x = torch.randn(4, 8)
    out, writing = apart(fn, x)
    torch.testing.assert_close(out, fn(x))
    assert not writing


def into_an_input(x: Tensor) -> Tensor:
    return x.add_(1) * 2


def into_a_view_of_an_input(x: Tensor) -> Tensor:
    return x.t().add_(1) * 2


def a_view_is_read_afterwards(x: Tensor) -> Any:
    h = x * 2
    row = h[0]
    h.add_(1)
    return row * 3


def the_base_is_read_afterwards(x: Tensor) -> Any:
    h = x * 2
    h[0].add_(1)
    return h


def a_view_leaves_the_graph(x: Tensor) -> Any:
    h = x * 2
    row = h[0]
    h.add_(1)
    return row, h


def through_detach(x: Tensor) -> Any:
    h = x * 2
    h.detach().add_(1)
    return h


@pytest.mark.parametrize(
    "fn",
    [
        into_an_input,
        into_a_view_of_an_input,
        a_view_is_read_afterwards,
        the_base_is_read_afterwards,
        a_view_leaves_the_graph,
        through_detach,
    ],
)
def test_a_write_that_somebody_sees_stays(fn: Callable[[Tensor], Any]) -> None:
    x = torch.randn(4, 8)
    twin = x.clone()
    out, writing = apart(fn, x)
    torch.testing.assert_close(out, fn(twin))
    torch.testing.assert_close(x, twin)
    assert writing == {"add"}


def test_a_narrower_result_stays_a_write() -> None:
    def fn(x: Tensor, y: Tensor) -> Tensor:
        h = x * 2
        return h.add_(y)  # in bfloat16, where x + y would be float32

    x, y = torch.randn(4, 8, dtype=torch.bfloat16), torch.randn(4, 8)
    out, writing = apart(fn, x, y)
    assert out.dtype is torch.bfloat16 and writing == {"add"}
    torch.testing.assert_close(out, fn(x, y))


def test_without_gradients_a_tensor_keeps_those_it_had() -> None:
    def fn(x: Tensor) -> Tensor:
        h = x * 2
        with torch.no_grad():
            h.add_(1)
        return h * h

    x = torch.randn(4, 8, requires_grad=True)
    [expected] = torch.autograd.grad(fn(x).sum(), x)
    out, _ = apart(fn, x)
    [found] = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(found, expected)
