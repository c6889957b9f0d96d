"""An op's one declaration: the schema, the call by name, what a pass reads of a node."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from operator import getitem
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from loka_compile.kernels import op
from loka_compile.kernels.op import Op, T, contiguous, declare, dense
from loka_compile.kernels.op_fields import schema


class Halves(NamedTuple, Generic[T]):
    even: T
    odd: T


@dataclass(frozen=True)
class Factor:
    factor: float


@dataclass(frozen=True)
class Part(Generic[T]):
    by: Factor
    bias: T | None


@dataclass(frozen=True)
class Split(Op[T, Halves[T]]):
    name: ClassVar[str] = "test_split"
    values: ClassVar[Any] = Halves
    x: T
    part: Part[T]
    dtype: torch.dtype
    more: int = 0
    both: bool = True


@dataclass(frozen=True)
class Same(Op[T, T]):
    name: ClassVar[str] = "test_same"
    x: T
    size: int


def halves(call: Split[Tensor]) -> Halves[Tensor]:
    x = (call.x * call.part.by.factor).to(call.dtype)
    x = x if call.part.bias is None else x + call.part.bias.to(x.dtype)
    return Halves(x[..., ::2], x[..., 1::2] if call.both else x[..., :0])


split = declare(Split, dense(halves))
same = declare(Same, lambda call: call.x.clone())
PART = Part(Factor(2.0), None)


@pytest.fixture
def graph():
    """x -> split -> odd, and even twice"""
    graph = fx.Graph()
    x, bias = graph.placeholder("x"), graph.placeholder("bias")
    call = graph.call_function(Split.target(), (x, 2.0, bias, torch.float32), {"both": False})
    graph.output([graph.call_function(getitem, (call, place)) for place in (1, 0, 0)])
    return graph


def test_the_schema_is_the_fields():
    assert schema(Split) == (
        "(Tensor x, float factor, Tensor? bias, ScalarType dtype, SymInt more=0, bool both=True) -> (Tensor, Tensor)"
    )
    assert schema(Same) == "(Tensor x, SymInt size) -> Tensor"
    assert [each.name for each in Split.target()._schema.arguments] == ["x", "factor", "bias", "dtype", "more", "both"]


def test_a_call_by_name_and_one_by_place_are_one():
    x = torch.randn(3, 4)
    made = Split(x, PART, torch.bfloat16)()
    assert isinstance(made, Halves) and torch.equal(made.even, (x[:, ::2] * 2).bfloat16())
    assert all(map(torch.equal, made, split(x, 2.0, None, torch.bfloat16)))
    for bound, named in (
        (Split.bind(x, 2.0, None, torch.bfloat16), Split(x, PART, torch.bfloat16)),
        (Split.bind(x, 2.0, None, torch.bfloat16, 1, False), Split(x, PART, torch.bfloat16, 1, False)),
    ):
        assert bound.x is named.x and replace(bound, x=None) == replace(named, x=None)  # tensors have no one equality
    assert torch.equal(Same(x, 3)(), x)
    for args, kwargs in (((x, 3, 4), {}), ((x,), {"length": 3}), ((x, 3), {"x": x}), ((x,), {})):
        with pytest.raises(TypeError):
            Same.bind(*args, **kwargs)


def test_what_it_gives_of_fake_tensors_is_what_it_gives():
    real = Split(torch.randn(4, 6).t(), PART, torch.float16)
    with FakeTensorMode() as mode:
        fake = replace(real, x=mode.from_tensor(real.x))()
    for one, other in zip(real(), fake, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
        assert one.is_contiguous()
    torch.library.opcheck(Split.target(), real.args)


def test_results_share_no_memory():
    """An operator may give none of its arguments, and nothing twice."""

    @dataclass(frozen=True)
    class Twice(Op[T, Halves[T]]):
        name: ClassVar[str] = "test_twice"
        values: ClassVar[Any] = Halves
        x: T

    declare(Twice, lambda call: Halves(call.x, call.x))
    x = torch.randn(3)
    made = Twice(x)()
    assert len({x.data_ptr(), made.even.data_ptr(), made.odd.data_ptr()}) == 3 and torch.equal(made.odd, x)


def test_an_argument_is_no_result():
    """torch.library forbids that an operator gives an argument of its own back."""

    @dataclass(frozen=True)
    class Given(Op[T, T]):
        name: ClassVar[str] = "test_given"
        x: T

    declare(Given, lambda call: call.x)
    x = torch.randn(3)
    made = Given(x)()
    assert made.data_ptr() != x.data_ptr() and torch.equal(made, x)


def test_a_gradient_that_an_op_has_not_is_refused():
    x = torch.randn(3, requires_grad=True)
    made = Same(x, 3)()
    with pytest.raises(RuntimeError, match="loka::test_same has no gradient"):
        made.sum().backward()


def test_an_op_of_inference_says_so_when_it_is_called():
    @dataclass(frozen=True)
    class Never(Op[T, T]):
        name: ClassVar[str] = "test_never"
        x: T

    declare(Never, lambda call: call.x * 2, gradient="never")
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="loka::test_never has no gradient"):
        Never(x)()
    with torch.no_grad():
        assert torch.equal(Never(x)(), x * 2)


def test_a_node_is_read_by_name(graph):
    (node,) = Split.calls(graph)
    call = Split.of(node)
    x, bias = graph.find_nodes(op="placeholder")
    assert (call.x, call.part, call.more, call.both) == (x, Part(Factor(2.0), bias), 0, False)
    assert call.args == (x, 2.0, bias, torch.float32, 0, False)
    odd, even, again = node.users
    assert (Split.taken(node, "even"), Split.taken(node, "odd")) == ([even, again], [odd])
    assert Split.made(odd, "odd") is node and Split.made(odd) is node and Split.made(odd, "even") is None
    assert Split.made(node) is None and Same.made(odd) is None and not Same.matches(node)
    packet = graph.call_function(torch.ops.loka.test_same, (x, 3))
    assert Same.of(packet) == Same(x, 3)


def test_a_node_of_another_op_is_refused(graph):
    x, _ = graph.find_nodes(op="placeholder")
    for node in (x, *Split.calls(graph)):
        with pytest.raises(TypeError, match="a call of loka::test_same"):
            Same.of(node)
    with pytest.raises(ValueError, match="'third'"):
        Split.taken(*Split.calls(graph), "third")


def test_contiguous_keeps_the_rest():
    call = contiguous(Split(torch.randn(4, 6).t(), PART, torch.float16))
    assert call.x.is_contiguous() and (call.part, call.dtype) == (PART, torch.float16)


def test_ours_are_registered_as_they_are_declared():
    folder = Path(op.__file__).parent
    names = {".".join(each.relative_to(folder).with_suffix("").parts) for each in folder.rglob("[!_]*.py")}
    found = [each for name in names for each in vars(import_module(f"loka_compile.kernels.{name}")).values()]
    kinds = {each for each in found if isinstance(each, type) and issubclass(each, Op) and each is not Op}
    assert len(kinds) > 15
    for kind in kinds:
        assert str(kind.target()._schema) == f"loka::{kind.name}{schema(kind)}"
