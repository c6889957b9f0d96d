"""Splicing a traced torch function into a graph."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from loka_compile.graph.splice import splice
from loka_compile.kernels.quantize.quantize import quantize

NAMES = {
    "nn_module_stack": {"a": ("L['self'].a", torch.nn.Linear)},
    "stack_trace": 'File "model.py", line 3, in forward',
    "seq_nr": 7,
    "partitioner_tag": "is_backward",
}


def graph_of(function, *inputs, tracing_mode="fake"):
    """The graph of `function` and its `sin` node, in front of which the tests splice."""
    module = make_fx(function, tracing_mode=tracing_mode)(*inputs)
    (sin,) = module.graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default)
    sin.meta.update(NAMES)
    return module, sin


def replace_sin(module, sin, new):
    sin.replace_all_uses_with(new)
    module.graph.erase_node(sin)
    module.graph.lint()
    module.recompile()
    return module


def test_the_new_graph_computes_the_function():
    module, sin = graph_of(lambda x, y: (x + y).sin() * 2, torch.randn(3, 4), torch.randn(3, 4))
    second = module.graph.find_nodes(op="placeholder")[1]
    new = splice(sin, lambda a, b: torch.softmax(a, -1) + b, [sin.args[0], second])
    replace_sin(module, sin, new)
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(module(x, y), (torch.softmax(x + y, -1) + y) * 2)
    torch.testing.assert_close(fx.Interpreter(module).run(x, y), module(x, y))


def test_metadata_is_complete():
    module, sin = graph_of(lambda x: x.sin(), torch.randn(3, 4))
    old = set(module.graph.nodes)
    new = splice(sin, lambda x: quantize(x, torch.int8, "row", -1), [sin.args[0]], loka_site="here")
    added = [node for node in module.graph.nodes if node not in old]
    assert len(added) == 3
    for node in added:
        assert "val" in node.meta
        assert {name: node.meta[name] for name in NAMES} == NAMES
        assert node.meta["loka_site"] == "here"
    assert [node.meta["val"].shape for node in new] == [(3, 4), (3, 1)]
    assert [node.meta["val"].dtype for node in new] == [torch.int8, torch.float32]
    assert new[0].meta["val"].fake_mode is sin.meta["val"].fake_mode


def test_names_that_the_node_lacks_stay_out():
    _, sin = graph_of(lambda x: x.sin(), torch.randn(3, 4))
    for name in NAMES:
        del sin.meta[name]
    new = splice(sin, torch.cos, [sin.args[0]])
    assert not NAMES.keys() & new.meta.keys() - {"stack_trace", "seq_nr"}


def test_nested_outputs():
    module, sin = graph_of(lambda x: x.sin(), torch.randn(3, 4))
    x = sin.args[0]
    a, (b, c), d = splice(sin, lambda x: (x + 1, (x * 2, None), x), [x])
    assert isinstance(a, fx.Node)
    assert isinstance(b, fx.Node)
    assert c is None
    assert d is x  # an input returned as it is
    given = torch.randn(3, 4)
    assert torch.equal(replace_sin(module, sin, b)(given), given * 2)


def test_constants_and_none_are_arguments_too():
    module, sin = graph_of(lambda x: x.sin(), torch.randn(3, 4))

    def function(x, scale, bias, dtype, how, y):
        assert bias is None
        assert how == "row"
        return (x * scale + y).to(dtype)

    new = splice(sin, function, [sin.args[0], 3, None, torch.bfloat16, "row", sin.args[0]])
    assert new.meta["val"].dtype == torch.bfloat16
    given = torch.randn(3, 4)
    assert torch.equal(replace_sin(module, sin, new)(given), (given * 4).bfloat16())


def test_symbolic_sizes():
    module, sin = graph_of(lambda x: x.sin(), torch.randn(130, 7), tracing_mode="symbolic")
    new = splice(sin, lambda x: torch.nn.functional.pad(x, (0, 0, 0, -x.shape[0] % 128)).sum(1), [sin.args[0]])
    assert isinstance(new.meta["val"].shape[0], torch.SymInt)
    assert all("val" in node.meta for node in module.graph.nodes if node.op != "output")
    replace_sin(module, sin, new)
    for rows in (129, 131, 200):
        assert module(torch.ones(rows, 7)).shape == (256,)
        assert module(torch.ones(rows, 7)).sum() == rows * 7


def test_a_symbolic_size_is_an_argument_too():
    module, sin = graph_of(lambda x: x.sin() + x.shape[0], torch.randn(5, 7), tracing_mode="symbolic")
    size = next(n for n in module.graph.nodes if isinstance(n.meta.get("val"), torch.SymInt))
    sin.prepend(size)
    new = splice(sin, lambda x, n: x * n, [sin.args[0], size])
    given = torch.randn(6, 7)
    assert torch.equal(replace_sin(module, sin, new)(given), given * 6 + 6)


def test_tensor_constants_are_refused():
    module, sin = graph_of(lambda x: x.sin(), torch.randn(3, 4))
    before = module.graph.python_code("self").src

    def makes_a_constant(x):
        return x + 1 + torch.tensor([1.0, 2.0, 3.0, 4.0])

    with pytest.raises(TypeError, match=r"makes_a_constant makes a tensor constant .* pass it as an argument"):
        splice(sin, makes_a_constant, [sin.args[0]])
    constant = torch.randn(4)
    with pytest.raises(AssertionError, match=r"non-Fake|FakeTensors"):
        splice(sin, lambda x: x + 1 + constant, [sin.args[0]])
    assert module.graph.python_code("self").src == before


def test_what_is_written_is_decomposed():
    """`aten.t` and `clamp` have both a fallback and a decomposition in Inductor; neither may be left."""
    module, sin = graph_of(lambda x: x.sin(), torch.randn(3, 4))
    new = splice(sin, lambda x: torch.clamp(x, -1, 1).t().contiguous().t(), [sin.args[0]])
    targets = {node.target for node in module.graph.nodes}
    assert not targets & {torch.ops.aten.t.default, torch.ops.aten.clamp.default}
    assert operator.getitem not in targets
    given = torch.randn(3, 4) * 3
    assert torch.equal(replace_sin(module, sin, new)(given), given.clamp(-1, 1))
