"""torchao's kernels as a provider: the reference's numbers, alone and through torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import loka_compile as loka
from loka_compile.kernels.gemm.product import reference
from loka_compile.kernels.providers import PROVIDERS
from loka_compile.spec.processor import processor
from tests.helpers import sqnr_db
from tests.kernels.gemm.test_scaled_gemm import EIGHT_BIT, assert_product, operands

pytest.importorskip("torchao")
int8 = pytest.param(
    "int8_rowwise",
    marks=pytest.mark.skipif(processor().int_mm_saturates, reason="its int8 saturates here, and is refused"),
)
pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.mark.parametrize("recipe", [int8, *(each for each in EIGHT_BIT if each != "int8_rowwise")])
@pytest.mark.parametrize("shape", [(5, 7, 3), (33, 127, 17), (64, 128, 48)])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
def test_it_computes_the_product(recipe, shape, out_dtype):
    quantized = operands(recipe, *shape)
    out = PROVIDERS["torchao"].product(*quantized, out_dtype)
    assert out.dtype == out_dtype
    if out_dtype == torch.float32:
        assert_product(out, *quantized)
    else:
        assert sqnr_db(out, reference(*quantized, torch.float32)) > 45


@pytest.mark.parametrize("recipe", [int8, "fp8_rowwise"])
def test_operands_that_are_transposed(recipe):
    """As a grad_weight's: scales of rows were made as scales of columns."""
    b, b_scale, a, a_scale = (x.mT for x in operands(recipe, 33, 128, 17))
    assert_product(PROVIDERS["torchao"].product(a, a_scale, b, b_scale, torch.float32), a, a_scale, b, b_scale)


@pytest.mark.parametrize("recipe", [int8, "fp8_rowwise"])
def test_through_the_passes(recipe, plan_for, op_by_op):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16)), torch.randn(64, 32)
    with torch.no_grad():
        plan = plan_for(recipe, model, x, provider="torchao")
        compiled = torch.compile(model, backend="loka", options={"plan": plan})
        assert sqnr_db(compiled(x), model(x)) > 20
    (record,) = loka.records(compiled)
    assert set(record.kernels.values()) == {"loka.frozen_gemm"}


@pytest.mark.parametrize("recipe", [int8])
def test_training_in_generated_code(plan_for, recipe):
    torch.manual_seed(0)
    model, x = nn.Linear(32, 48), torch.randn(64, 32)
    plan = plan_for(recipe, model, x, provider="torchao")
    compiled = torch.compile(model, backend="loka", options={"plan": plan})
    compiled(x).square().sum().backward()
    expected = torch.autograd.grad(model(x).square().sum(), model.weight)[0]
    assert sqnr_db(model.weight.grad, expected) > 25
    assert {row.runs_as for row in loka.explain(compiled).lowered} == {"loka.scaled_gemm"}
