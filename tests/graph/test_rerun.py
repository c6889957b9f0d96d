"""Inputs for one more run of a graph: as the inputs were, in memory of their own."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from examples.apart import APART
from loka_compile import compat
from loka_compile.graph.rerun import ALIGNED, own_inputs, written_inputs


def captured(fn, *args):
    found = []

    def backend(gm, inputs):
        found.append((gm.graph, inputs))
        return gm.forward

    torch.compile(fn, backend=backend, **APART)(*args)
    return found[0]


class Moving(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.weight = nn.Parameter(torch.zeros(4), requires_grad=False), nn.Parameter(torch.ones(4))

    def forward(self, x):
        with torch.no_grad():
            self.mean.view(2, 2).mul_(0.9)
        return (x - self.mean) * self.weight


def test_written_parameters_are_copied_and_others_are_not(fresh_dynamo):
    model = Moving()
    graph, inputs = captured(model, torch.randn(3, 4))
    own = dict(zip(map(id, inputs), own_inputs(inputs, written_inputs(graph)), strict=True))
    assert own[id(model.weight)] is model.weight
    assert own[id(model.mean)] is not model.mean and torch.equal(own[id(model.mean)], model.mean)


def test_a_parameter_that_is_written_through_another_input_is_copied():
    weight = nn.Parameter(torch.zeros(4, 3))
    rows = weight.detach()[1:3]
    assert own_inputs([weight, rows], ())[0] is weight
    for written in ({0}, {1}):
        own = own_inputs([weight, rows], written)
        own[1].fill_(1)
        assert own[0].detach().sum() == 6 and own[0].requires_grad and own[0].is_leaf
        assert not weight.detach().any()


def view_of(draw, tensor):
    """One step from a tensor to a view of it."""
    kind = draw(st.sampled_from(("slice", "transpose", "expand", "select", "unfold", "view", "as_strided", "detach")))
    dims = tensor.dim()
    if kind == "as_strided":
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        strides = [draw(st.integers(0, 5)) for _ in shape]
        room = tensor.untyped_storage().nbytes() // tensor.element_size() - 1
        last = sum(max(size - 1, 0) * stride for size, stride in zip(shape, strides, strict=True))
        return tensor.as_strided(shape, strides, draw(st.integers(0, room - last))) if last <= room else tensor
    if kind == "detach":
        return tensor.detach()
    if kind == "view":
        return tensor.unsqueeze(draw(st.integers(0, dims)))
    if not dims or not tensor.numel():
        return tensor
    dim = draw(st.integers(0, dims - 1))
    size = tensor.shape[dim]
    if kind == "slice":
        low = draw(st.integers(0, size - 1))
        return tensor[(slice(None),) * dim + (slice(low, draw(st.integers(low, size)), draw(st.integers(1, 3))),)]
    if kind == "transpose":
        return tensor.transpose(dim, draw(st.integers(0, dims - 1)))
    if kind == "expand":
        return tensor.unsqueeze(0).expand(draw(st.integers(0, 3)), *tensor.shape)
    if kind == "select":
        return tensor.select(dim, draw(st.integers(0, size - 1)))
    return tensor.unfold(dim, draw(st.integers(1, size)), draw(st.integers(1, 2)))


@st.composite
def inputs_of_a_graph(draw):
    """Tensors of one to three storages, views of them and of these: leaves, computed ones and ones without gradient."""
    inputs = []
    for _ in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from((torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.complex64)))
        shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
        base = torch.arange(torch.Size(shape).numel() + 3).to(dtype)[draw(st.integers(0, 3)) :]
        base = base[: torch.Size(shape).numel()].view(shape)
        gradient = draw(st.sampled_from(("none", "leaf", "computed"))) if base.is_floating_point() else "none"
        if gradient != "none":
            base = base.clone().requires_grad_()
            base = base * 1 if gradient == "computed" else base
        family = [base]
        for _ in range(draw(st.integers(0, 4))):
            with torch.set_grad_enabled(draw(st.booleans())):
                family.append(view_of(draw, draw(st.sampled_from(family))))
        inputs += [each for each in family if draw(st.booleans())]
    return inputs + [7] * draw(st.integers(0, 1))


def layout(tensor):
    place = tensor.data_ptr() % ALIGNED
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad, tensor.is_leaf, place


def write(tensors, places):
    """Into one tensor after the other, and all of their values after each."""
    seen = []
    for number, place in enumerate(places):
        tensors[place].detach().add_(number + 1)
        seen.append([each.detach().clone() for each in tensors])
    return seen


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_copies_are_as_the_inputs_were(data):
    inputs = data.draw(inputs_of_a_graph())
    tensors = [each for each in inputs if isinstance(each, torch.Tensor)]
    writable = [i for i, each in enumerate(tensors) if not _overlaps_itself(each)]
    places = data.draw(st.lists(st.sampled_from(writable), max_size=4)) if writable else []
    before = [each.detach().clone() for each in tensors]
    own = own_inputs(inputs, set(places))
    assert own[len(tensors) :] == inputs[len(tensors) :]
    for copy, tensor in zip(own, tensors, strict=False):
        assert layout(copy) == layout(tensor) and torch.equal(copy, tensor)
    for i, j in itertools.combinations([i for i, each in enumerate(tensors) if each.numel()], 2):
        if tensors[i] is not tensors[j] and _storage(tensors[i]) == _storage(tensors[j]):
            assert _related(own[i], own[j]) == _related(tensors[i], tensors[j])
            assert _storage(own[i]) == _storage(own[j])
    seen = write(own[: len(tensors)], places)
    assert all(map(torch.equal, before, tensors)), "the inputs themselves were written"
    for mine, theirs in zip(seen, write(tensors, places), strict=True):
        assert all(map(torch.equal, mine, theirs))


def _storage(tensor):
    return tensor.untyped_storage().data_ptr()


def _related(one, other):
    """Whether autograd takes them for views of one tensor, or one for a view of the other."""
    return (one._base is not None and one._base is other._base), one._base is other, other._base is one


def _overlaps_itself(tensor):
    """Some of its values lie at one place: torch refuses to write there, and may be wrong to allow it."""
    places = torch.arange(tensor.untyped_storage().nbytes() // tensor.element_size())
    reached = places.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return reached.unique().numel() < reached.numel()


def of_one_base(x):
    return x[:, 1:3], x[:, 2]


def of_itself(x):
    return x, x[1]


def of_nothing_known(x):
    """Tensors in one storage that autograd takes for strangers."""
    return x.detach()[0].detach(), x.detach().view(-1).detach()


def twice(x):
    return x, x


def apart(x):
    return x[0].clone(), x[1].clone()


VIEWS = [of_one_base, of_itself, of_nothing_known, twice, apart]


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("written", [0, 1])
def test_compiled_code_takes_copies_for_the_inputs(fresh_dynamo, views, gradient, written):
    """AOTAutograd makes one input of tensors that share memory where one of them is written, and finds it by what they
    are views of."""
    if gradient and views is of_nothing_known:
        pytest.skip("AOTAutograd has no gradients for these")
    weight = torch.linspace(-1, 1, 20).view(4, 5).requires_grad_(gradient)
    inputs_of = lambda: views(weight * 2)  # noqa: E731
    again = []

    def f(*args):
        args[written].mul_(3)
        return args[0].sum() + args[1].cos().sum()

    def backend(gm, inputs):
        compiled = compat.capture(gm, inputs, joint=lambda graph: None, inner=lambda module, _: module.forward)
        places = written_inputs(gm.graph)

        def call(*args):
            before = [each.detach().clone() for each in args]
            copies = own_inputs(args, places)
            once_more = compiled(*copies)[0]
            assert all(map(torch.equal, before, args))
            results = compiled(*args)
            torch.testing.assert_close(copies, list(args))
            again.append(once_more)
            return results

        return call

    args, expected = inputs_of(), inputs_of()
    out, reference = torch.compile(f, backend=backend)(*args), f(*expected)
    [once_more] = again
    torch.testing.assert_close((out, once_more), (reference, reference))
    torch.testing.assert_close(args, expected)
    if gradient:
        wanted = torch.autograd.grad(reference, weight)
        torch.testing.assert_close(torch.autograd.grad(out, weight), wanted)
        assert once_more.grad_fn is not None


def test_what_has_no_storage_is_cloned():
    sparse = torch.eye(3).to_sparse()
    conjugate = torch.tensor([1 + 2j]).conj()
    for value in (sparse, conjugate, conjugate.imag):
        [own] = own_inputs([value], ())
        assert own is not value and torch.equal(own.to_dense(), value.to_dense())


def test_little_of_a_large_storage_is_copied():
    rows = torch.zeros(2**24)[100:164]
    [own] = own_inputs([rows], ())
    assert own.untyped_storage().nbytes() < 2**10
