"""share: GEMMs that read equal copies of a tensor share one, and what is quantized of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.helpers import compile_op_by_op, sqnr_db

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Tokens(nn.Module):
    """Three linears over the transposed tokens of x, (B, 6, 8), and one over its last dimension."""

    def __init__(self):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(6, n, bias=False) for n in (16, 24, 32))
        self.across = nn.Linear(8, 16, bias=False)

    def forward(self, x):
        return *(linear(x.transpose(1, 2)) for linear in self.linears), self.across(x)


def shared(captured):
    """What the pass says it did to the inference or joint graph."""
    return [r for (name, _), result in captured.results.items() if name == "share" for r in result.rewrites]


@pytest.mark.parametrize("rows", [2, 5, 257])
def test_one_copy_and_one_quantization_serve_all(plan_for, rows):
    model, x = Tokens(), torch.randn(rows, 6, 8)
    with torch.no_grad():
        plan = plan_for("int8_rowwise", model, x)
        captured = compile_op_by_op(model, plan)
        out = captured(x)
    assert captured.ops("before")["aten.clone"] == 3
    assert captured.ops("inference")["aten.clone"] == 1
    assert captured.ops("inference")["aten.amax"] == 2  # of the transposed tokens, and of the tokens
    assert shared(captured)
    for ours, reference in zip(out, model(x), strict=True):
        assert sqnr_db(ours, reference) > 30


def test_with_a_batch_of_any_size(plan_for):
    model, x = Tokens(), torch.randn(7, 6, 8)
    with torch.no_grad():
        plan = plan_for("int8_rowwise", model, x)
        captured = compile_op_by_op(model, plan, dynamic=True)
        captured(x), captured(torch.randn(11, 6, 8))
    assert captured.compilations == 1
    assert captured.ops("inference")["aten.clone"] == 1


def test_in_training_gradients_are_those_without(plan_for):
    model, x = Tokens(), torch.randn(5, 6, 8)
    plan = plan_for("fp8_rowwise", model, x)
    captured = compile_op_by_op(model, plan)
    gradients = [
        torch.autograd.grad(sum(out.square().sum() for out in call(x)), list(model.parameters()))
        for call in (captured, model)
    ]
    assert shared(captured)
    assert all(sqnr_db(ours, reference) > 15 for ours, reference in zip(*gradients, strict=True))


def test_different_copies_stay_apart(plan_for):
    """The same tensor, transposed in two ways: nothing is equal but the tensor."""

    def twice(x, a, b):
        return x.transpose(0, 1).reshape(-1, 8) @ a, x.transpose(0, 2).reshape(-1, 5) @ b

    args = torch.randn(5, 6, 8), torch.randn(8, 16), torch.randn(5, 16)
    with torch.no_grad():
        captured = compile_op_by_op(twice, plan_for("int8_rowwise", twice, *args))
        out = captured(*args)
    assert not shared(captured)
    assert all(sqnr_db(o, r) > 30 for o, r in zip(out, twice(*args), strict=True))


def test_copies_that_no_product_reads_are_left_alone(plan_for):
    def pointwise(x):
        return x.transpose(0, 1).contiguous().sin(), x.transpose(0, 1).contiguous().cos()

    captured = compile_op_by_op(pointwise, plan_for("int8_rowwise", pointwise, torch.randn(5, 6)))
    captured(torch.randn(5, 6))
    assert not shared(captured)
    assert captured.graphs["after"].nodes.__len__() == captured.graphs["before"].nodes.__len__()


def test_copies_that_are_returned_stay_apart(plan_for):
    """Who writes to one of them does not write to the other."""

    def copies(x, a, b):
        one, other = x.transpose(0, 1).contiguous(), x.transpose(0, 1).contiguous()
        return one @ a, other @ b, one, other.view(-1)

    args = torch.randn(5, 8), torch.randn(5, 16), torch.randn(5, 16)
    with torch.no_grad():
        captured = compile_op_by_op(copies, plan_for("int8_rowwise", copies, *args))
        *_, one, other = captured(*args)
    one.zero_()
    assert torch.equal(other, args[0].t().reshape(-1))
