"""uint8_affine: a step and a smallest value a row, for operands of any sign."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from loka_compile.kernels.providers import PROVIDERS, reasons_against
from loka_compile.kernels.providers.aten import frozen_int_mm
from loka_compile.kernels.quantize.quantize import dequantize, quantize
from loka_compile.probe.score import emulate, sqnr_db
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.target import TARGETS
from tests.helpers import compile_op_by_op

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

AFFINE, INT8 = RECIPES["uint8_affine"], RECIPES["int8_rowwise"]
sizes = st.integers(1, 70)


@given(sizes, sizes, st.floats(-90, 90), st.floats(-3, 3), st.integers(0, 99))
def test_an_error_is_at_most_half_a_step(rows, columns, octaves, shift, seed):
    x = (torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) + shift) * 2**octaves
    q, scale = quantize(x, torch.uint8, "affine", -1)
    assert q.dtype == torch.uint8 and scale.shape == (rows, 1, 2)
    step, least = scale.unbind(-1)
    assert torch.equal(least, x.amin(1, keepdim=True))
    span = (x.amax(1, keepdim=True) - least).clamp(min=1e-30)
    assert torch.equal(step, span / 255)
    slack = 4e-7 * x.abs().amax(1, keepdim=True)  # float32's own, where a row hardly varies
    assert ((dequantize(q, scale) - x).abs() <= 0.501 * step + slack).all()


@pytest.mark.parametrize("value", [0.0, -3.0, 7.0])
def test_a_constant_row_is_exact(value):
    x = torch.full((2, 5), value)
    assert torch.equal(dequantize(*quantize(x, torch.uint8, "affine", -1)), x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_so(bad):
    q, scale = quantize(torch.tensor([[bad, 1.0], [1.0, 2.0]]), torch.uint8, "affine", -1)
    out = dequantize(q, scale)
    assert not out[0].isfinite().all() and torch.equal(out[1], torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(("dtype", "axis"), [(torch.int8, -1), (torch.float8_e4m3fn, -1), (torch.uint8, -2)])
def test_it_is_for_rows_in_uint8(dtype, axis):
    with pytest.raises(ValueError, match="affine is for uint8 along axis -1"):
        quantize(torch.ones(2, 2), dtype, "affine", axis)


def test_empty():
    q, scale = quantize(torch.empty(0, 4), torch.uint8, "affine", -1)
    assert q.shape == (0, 4) and scale.shape == (0, 1, 2) and dequantize(q, scale).shape == (0, 4)
    torch.library.opcheck(torch.ops.loka.quantize, (torch.randn(3, 5), torch.uint8, "affine", -1))


@given(sizes, sizes, sizes, st.integers(0, 99))
def test_column_sums_make_up_for_the_smallest_value(m, k, n, seed):
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(m, k, generator=generator) - 0.7, torch.randn(n, k, generator=generator)
    q, scale = quantize(x, torch.uint8, "affine", -1)
    acc, (columns, sums) = frozen_int_mm(q, weight, True)
    step, least = scale.unbind(-1)
    exact = dequantize(q, scale).double() @ dequantize(*quantize(weight.t(), torch.int8, "row", -2)).double()
    torch.testing.assert_close((acc.float() * step * columns + least * sums).double(), exact, rtol=1e-4, atol=1e-4)
    right = quantize(weight.t(), torch.int8, "row", -2)
    out = PROVIDERS["aten"].product(q, scale, *right, torch.float32)
    torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("shift", "least"), [(0.0, 0.3), (1.0, 1.5), (3.0, 5.0)])
def test_it_loses_less_than_int8_the_more_one_sided_rows_are(shift, least):
    """By themselves: the weight is exact in int8."""
    torch.manual_seed(0)
    x, w = torch.randn(256, 100) + shift, torch.randint(-127, 128, (100, 64)).float()
    w[0] = 127
    reference = x.double() @ w.double()
    assert sqnr_db(emulate(AFFINE, x, w), reference) - sqnr_db(emulate(INT8, x, w), reference) > least


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 16)

    def forward(self, x):
        return self.down(self.up(x).tanh())


def test_a_model_runs_in_it(plan_for):
    torch.manual_seed(0)
    model, x = Mlp(), torch.randn(64, 32)
    with torch.no_grad():
        captured = compile_op_by_op(model, plan_for("uint8_affine", model, x))
        out = captured(x)
        hidden = (emulate(AFFINE, x, model.up.weight.t()) + model.up.bias).tanh()
        expected = emulate(AFFINE, hidden, model.down.weight.t()) + model.down.bias
    assert captured.ops("inference")["loka.frozen_int_mm"] == 2
    assert sqnr_db(out, expected) > 60


def test_what_speaks_against_it(sites_of):
    with torch.no_grad():
        ((site, *_),) = sites_of(Mlp(), torch.randn(64, 32))
        ((flipped,),) = sites_of(lambda x, w: x.t() @ w, torch.randn(32, 64), torch.randn(32, 8))
    against = lambda site, target="cpu": reasons_against("aten", site, AFFINE, TARGETS[target])  # noqa: E731
    with torch.no_grad():
        ((after_relu,),) = sites_of(lambda x, w: x.relu() @ w, torch.randn(32, 64), nn.Parameter(torch.randn(64, 8)))
    assert against(site) == []
    assert any("uint8_rowwise does as well" in reason for reason in against(after_relu))
    assert "only the CPU's _int_mm takes uint8" in against(site, "h100")
    assert any("it is transposed or a gradient" in reason for reason in against(flipped))
