"""loka::frozen_onednn against float64, packed once, and in generated code."""

from __future__ import annotations

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import loka_compile as loka
from loka_compile.kernels.providers import reasons_against
from loka_compile.kernels.providers.onednn import frozen_onednn
from loka_compile.kernels.quantize import quantize as quantization
from loka_compile.spec.processor import processor
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Operand, Site
from loka_compile.spec.target import TARGETS
from tests.helpers import sqnr_db

pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo", "no_grad"),
    pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN"),
]

in_32_bits = pytest.mark.skipif(
    processor().onednn_saturates, reason="oneDNN saturates on this processor, and the provider refuses it there"
)

sizes = st.integers(1, 70)


def operands(m, k, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(0, 256, (m, k), dtype=torch.uint8, generator=generator)
    return a, torch.randn(n, k, generator=generator) * torch.logspace(-1, 1, n)[:, None]


@in_32_bits
@given(sizes, sizes, sizes, st.booleans())
@settings(deadline=None)
def test_it_is_the_product_with_the_quantized_weight(m, k, n, transposed):
    a, weight = operands(m, k, n)
    q, scale = quantization.reference(weight.mT, torch.int8, "row", -2)
    expected = (a.double() @ q.double()) * scale.double()
    out = frozen_onednn(a, nn.Parameter(weight if transposed else weight.mT.contiguous()), transposed)
    assert out.dtype == torch.float32
    bound = 2.0**-22 * (a.double() @ q.double().abs()) * scale.double() + 1e-30
    assert ((out - expected).abs() <= bound * (8 + k)).all()


def test_no_rows():
    a, weight = operands(3, 8, 5)
    assert frozen_onednn(a[:0], nn.Parameter(weight), True).shape == (0, 5)


def test_opcheck():
    a, weight = operands(6, 8, 5)
    torch.library.opcheck(frozen_onednn, (a, weight, True))


def test_a_changed_weight_is_packed_anew():
    a, weight = operands(6, 8, 5)
    parameter = nn.Parameter(weight)
    first = frozen_onednn(a, parameter, True)
    with torch.no_grad():
        parameter.mul_(2)
    torch.testing.assert_close(frozen_onednn(a, parameter, True), 2 * first)


def test_it_is_refused_where_it_saturates_and_nowhere_else():
    """The largest values tell: 255 x 127 twice is more than 16 bits hold."""
    a, weight = torch.full((5, 64), 255, dtype=torch.uint8), torch.full((3, 64), 127.0)
    exact = torch.equal(frozen_onednn(a, nn.Parameter(weight), True), a.float() @ weight.t())
    assert exact != processor().onednn_saturates
    relu, size = Operand("x", "relu.default", nonnegative=True), sympy.Integer(64)
    site = Site("a", "mm", "output", sympy.S.One, size, size, size, torch.float32, static_rhs=True, lhs=relu)
    assert exact == (reasons_against("onednn", site, RECIPES["uint8_rowwise"], TARGETS["cpu"]) == [])


def test_a_zero_point_makes_unsigned_bytes_signed():
    a = torch.tensor([[1, 128, 255], [255, 255, 255]], dtype=torch.uint8)
    weight = nn.Parameter(torch.tensor([[64.0, -64, 64], [1, 64, 0]]))
    expected = (a.float() - 128) @ weight.detach().t()
    torch.testing.assert_close(frozen_onednn(a, weight, True, "row7", 128), expected)


def test_signed_bytes_that_are_not_negative_are_taken_as_they_are():
    a, weight = torch.full((5, 64), 127, dtype=torch.int8), torch.full((3, 64), -127.0)
    assert torch.equal(frozen_onednn(a, nn.Parameter(weight), True), a.float() @ weight.t())


@pytest.mark.parametrize("recipe", ["int8_rowwise_w7", "int8_rowwise"])
def test_without_vnni_in_generated_code(plan_for, recipe):
    """Exact on any processor: signed activations with weights of 7 bits, and with 8 what a ReLU made."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16)), torch.randn(64, 32)
    with torch.no_grad():
        plan = plan_for(recipe, model, x, provider="onednn")
        compiled = torch.compile(model, backend="loka", options={"plan": plan})
        assert sqnr_db(compiled(x), model(x)) > 30
    outcomes = [(row.outcome, row.runs_as) for row in loka.explain(compiled).rows]
    assert outcomes[1] == ("lowered", "loka.frozen_onednn")
    assert outcomes[0][0] == ("lowered" if recipe == "int8_rowwise_w7" else "refused")


@in_32_bits
def test_in_generated_code(plan_for):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16)), torch.randn(64, 32)
    with torch.no_grad():
        plan = plan_for("uint8_rowwise", model, x, provider="onednn")
        compiled = torch.compile(model, backend="loka", options={"plan": plan})
        assert sqnr_db(compiled(x), model(x)) > 35
    first, second = loka.explain(compiled).rows
    assert first.outcome == "refused" and "takes unsigned" not in first.reason
    assert "the left operand may have negative values" in first.reason
    assert (second.outcome, second.runs_as) == ("lowered", "loka.frozen_onednn")
