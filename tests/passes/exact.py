"""What the tests of the exact passes share: a pass on a module's Dynamo graph, held against the module in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from examples.apart import APART
from loka_compile import compat
from loka_compile.graph.apart import write_apart
from loka_compile.graph.reader import read
from loka_compile.inspect.records import code
from loka_compile.passes import Context, PassResult
from loka_compile.spec.plan import Plan

FREE = {"flops": 1.0, "bandwidth": float("inf"), "launch": 0.0}
"""Rates under which every FLOP saved pays."""


class Seen:
    """What a pass did to each graph of one call, and what the call returned."""

    call: Any
    out: Any

    def __init__(self) -> None:
        self.graphs: list[fx.Graph] = []
        self.results: list[PassResult] = []

    @property
    def did(self) -> list[tuple[str, str]]:
        return [(each.site, each.did) for result in self.results for each in result.rewrites]

    @property
    def reasons(self) -> list[str]:
        return [each.reason for result in self.results for each in result.rejects]


def rewritten(each: Any, fn: Any, *args: Any, dynamic: bool | None = None, context: Context | None = None) -> Seen:
    """`fn` after a pass on its Dynamo graphs. The pass is applied twice; the second time changes nothing."""
    context = context or Context(Plan("cpu", {}), "cpu")
    seen = Seen()

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        gm = compat.copy_dynamo_graph(gm)
        reading = read(gm.graph)
        write_apart(reading)
        before, original = code(gm.graph), set(gm.graph.nodes)
        result = each(reading, context)
        once = code(gm.graph)
        again = each(reading, context)
        assert not again.rewrites and code(gm.graph) == once
        assert result.rewrites or once == before  # without its pattern a graph is left untouched
        for node in set(gm.graph.nodes) - original:
            assert "example_value" in node.meta, node
        gm.recompile()
        # AOTAutograd without code generation: what it is given has to trace and to differentiate
        run = compat.capture(gm, inputs, joint=lambda graph: None, inner=lambda module, _: fx.Interpreter(module).run)
        seen.graphs.append(gm.graph)  # only now: for symbolic floats Dynamo may have to start over
        seen.results.append(result)
        return run

    seen.call = torch.compile(fn, backend=backend, dynamic=dynamic, **APART)
    seen.out = seen.call(*args)
    return seen


def agrees(each: Any, module: nn.Module, *args: Tensor, **options: Any) -> Seen:
    """Outputs and gradients of a module after a pass are the module's own, in float64."""
    module = module.double()
    args = tuple(x.double().requires_grad_() if x.is_floating_point() else x for x in args)
    twin, own = copy.deepcopy(module), tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in args)
    seen = rewritten(each, module, *args, **options)
    expected = twin(*own)
    for out, ref in zip(_tensors(seen.out), _tensors(expected), strict=True):
        torch.testing.assert_close(out, ref, rtol=1e-10, atol=1e-10)
    _backward(seen.out)
    _backward(expected)
    for x, ref in zip([*args, *module.parameters()], [*own, *twin.parameters()], strict=True):
        assert (x.grad is None) == (ref.grad is None)
        if ref.grad is not None:
            torch.testing.assert_close(x.grad, ref.grad, rtol=1e-9, atol=1e-9)
    return seen


def _backward(outputs: Any) -> None:
    torch.manual_seed(1)
    sum((out * torch.randn_like(out)).sum() for out in _tensors(outputs)).backward()


def _tensors(out: Any) -> list[Tensor]:
    return list(out) if isinstance(out, tuple | list) else [out]


def named(graph: fx.Graph, target: Any) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op in ("call_function", "call_method") and node.target == target]
