"""A function is traced once for each kind of call: which calls are the same, and that the graph is that of a trace."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from loka_compile.graph.traced import _trace, traced

CALLS = 0


def counted(x: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    global CALLS
    CALLS += 1
    scale = x.abs().amax(-1, keepdim=True) * factor
    return (x / scale).round().clamp(-127, 127).to(torch.int8).t(), scale


def fakes(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    with FakeTensorMode():
        return [torch.empty(shape, dtype=dtype) for shape in shapes]


def given(function: Any, values: list[Any], *more: Any) -> fx.Graph:
    nodes = [fx.Graph().placeholder("x") for _ in values]
    return traced(function, [*nodes, *more], values)[0]


def times(function: Any, *calls: tuple[list[Any], Any]) -> int:
    """How often the function itself runs for these calls, (values, one more argument)."""
    before = CALLS
    for values, more in calls:
        given(function, values, more)
    return CALLS - before


def test_equal_calls_are_traced_once() -> None:
    assert times(counted, (fakes((5, 9)), 0.5), (fakes((5, 9)), 0.5), (fakes((5, 9)), 0.5)) == 1
    transposed = [fakes((9, 5))[0].t()]
    others = [(fakes((6, 9)), 0.5), (fakes((5, 9)), 0.25), (fakes((5, 9), dtype=torch.float16), 0.5), (transposed, 0.5)]
    assert times(counted, *others) == len(others)
    assert times(counted, (fakes((5, 9)), -0.0), (fakes((5, 9)), 0.0), (fakes((5, 9)), 0)) == 3


def test_the_graph_and_its_values_are_those_of_a_trace() -> None:
    for _ in range(2):
        values, node = fakes((4, 8)), fx.Graph().placeholder("x")
        known, found = traced(counted, [node, 0.125], values)
        fresh = _trace(counted, [node, 0.125], values)
        assert str(known) == str(fresh)
        for a, b in zip(known.nodes, fresh.nodes, strict=True):
            assert {*a.meta, "val"} == {*b.meta, "val"}
            if a.op != "output":
                mine, other = found[a], b.meta["val"]
                assert mine.fake_mode is values[0].fake_mode
                assert (mine.shape, mine.stride(), mine.dtype) == (other.shape, other.stride(), other.dtype)


def test_a_function_is_what_it_holds() -> None:
    def made(dtype: torch.dtype, plus: float) -> Any:
        return lambda x, _: counted(x + plus, 1.0)[0].to(dtype)

    def graph(function: Any) -> str:
        return str(given(function, fakes((3, 3)), None))

    assert graph(made(torch.float16, 1.0)) == graph(made(torch.float16, 1.0)) != graph(made(torch.float16, 2.0))
    assert graph(made(torch.float16, 1.0)) != graph(made(torch.bfloat16, 1.0))
    assert times(made(torch.float16, 3.0), (fakes((3, 3)), None)) == 1
    assert times(made(torch.float16, 3.0), (fakes((3, 3)), None)) == 0
    both = fakes((3, 3), (3, 3))
    sums = [str(given(functools.partial(torch.add, alpha=alpha), both)) for alpha in (2.0, 3.0, 2.0)]
    assert sums[0] == sums[2] != sums[1]


def test_arguments_that_are_one_tensor_are_another_call() -> None:
    x, y = fakes((3, 4), (3, 4))

    def reads(graph: fx.Graph) -> int:
        return sum(bool(node.users) for node in graph.find_nodes(op="placeholder"))

    assert reads(given(torch.mul, [x, x])) == 1
    assert reads(given(torch.mul, [x, y])) == 2
    assert reads(given(torch.mul, [y, y])) == 1


def test_what_is_not_known_is_traced_each_time() -> None:
    kept: list[int] = []
    node = fx.Graph().placeholder("x")

    def holds_a_node(x: Tensor, _: Any) -> Tensor:
        return counted(x, float(len(node.name)))[0]

    assert times(holds_a_node, (fakes((3, 4)), None), (fakes((3, 4)), None)) == 2

    def writes_down(x: Tensor, _: Any) -> Tensor:
        kept.append(0)
        return counted(x, 1.0)[0]

    assert times(writes_down, (fakes((3, 4)), None), (fakes((3, 4)), None)) == 2
    assert len(kept) == 2


def test_no_fake_tensor_is_kept() -> None:
    import gc
    import weakref

    values = fakes((2, 6))
    graph = given(counted, values, 2.0)
    gone = weakref.ref(values[0].fake_mode)
    del values, graph
    gc.collect()
    assert gone() is None


def lazy(kind: str) -> Tensor:
    with FakeTensorMode():
        return torch._efficientzerotensor((3, 4)) if kind == "zeros" else torch._neg_view(torch.empty(3, 4))


@pytest.mark.parametrize("kind", ["zeros", "negated"])
def test_what_stands_for_other_values_is_traced_by_itself(kind: str) -> None:
    """The trace of a gradient that is known to be 0 has zeros in place of its input. Kept for tensors that lie alike,
    it was the weight of another model that became zeros."""

    def function(x: Tensor) -> Tensor:
        return x.abs() + 1

    given(function, [lazy(kind)])
    [x, out] = [node for node in given(function, fakes((3, 4))).nodes if node.op in ("placeholder", "output")]
    assert x.users and "full" not in str(out.graph) and "neg" not in str(out.graph)
    before = len(given(function, [lazy(kind)]).nodes)
    assert before == len(_trace(function, [fx.Graph().placeholder("x")], [lazy(kind)]).nodes)
