"""uint8_rowwise: twice as fine as int8 where there are no negative values, and refused where there may be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import loka_compile as loka
from loka_compile.kernels.gemm.int_mm import int_mm, int_mm_into
from loka_compile.kernels.providers import reasons_against
from loka_compile.kernels.quantize.quantize import dequantize, quantize
from loka_compile.probe.score import emulate, sqnr_db
from loka_compile.spec.decision import KEPT
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.target import TARGETS
from tests.helpers import compile_op_by_op

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

UINT8, INT8 = RECIPES["uint8_rowwise"], RECIPES["int8_rowwise"]
sizes = st.integers(1, 70)


@given(sizes, sizes, st.floats(-90, 90), st.integers(0, 99))
def test_an_error_is_at_most_half_a_step(rows, columns, octaves, seed):
    x = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2**octaves
    q, scale = quantize(x, torch.uint8, "row", -1)
    assert q.dtype == torch.uint8 and torch.equal(scale, x.amax(1, keepdim=True).clamp(min=1e-30) / 255)
    assert ((dequantize(q, scale) - x).abs() <= 0.501 * scale).all()


def test_negative_values_become_zero_and_never_wrap():
    q, _ = quantize(torch.tensor([[-1.0, 0.0, 0.4, 1.0], [-3.0, -2.0, -1.0, -0.1]]), torch.uint8, "row", -1)
    assert q.tolist() == [[0, 0, 102, 255], [0, 0, 0, 0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad):
    q, scale = quantize(torch.tensor([[bad, 1.0], [1.0, 2.0]]), torch.uint8, "row", -1)
    out = dequantize(q, scale)
    assert not out[0].isfinite().all() and out[1].isfinite().all()


@given(sizes, sizes, sizes, st.integers(0, 99))
def test_the_product_is_exact(m, k, n, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(0, 256, (m, k), dtype=torch.uint8, generator=generator)
    b = torch.randint(-127, 128, (k, n), dtype=torch.int8, generator=generator)
    assert torch.equal(int_mm(a, b).double(), a.double() @ b.double())


@given(sizes, sizes, st.integers(0, 99), st.sampled_from([torch.uint8, torch.int8]), st.booleans())
def test_one_row_is_exact_however_it_lies(k, n, seed, dtype, by_columns):
    """As (1, 1) strides have it too, which torch._int_mm misreads."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0 if dtype == torch.uint8 else -127, 128, (k,), dtype=dtype, generator=generator)
    b = torch.randint(-127, 128, (n, k), dtype=torch.int8, generator=generator).t()
    b = b if by_columns else b.contiguous()
    for a in (
        values[None],
        values.as_strided((1, k), (1, 1)),
        values[:, None].t(),
        values.repeat_interleave(2)[None, ::2],
    ):
        out = torch.empty(1, n, dtype=torch.int32)
        assert torch.equal(int_mm_into(out, a, b).double(), a.double() @ b.double())


@pytest.mark.parametrize(("dtype", "largest"), [(torch.uint8, 255), (torch.int8, 127), (torch.int8, -128)])
@pytest.mark.parametrize("right", [127, -127, -128, 1])
def test_largest_values_of_one_sign_do_not_saturate(dtype, largest, right):
    left = torch.full((5, 256), largest, dtype=dtype)
    b = torch.full((256, 7), right, dtype=torch.int8)
    assert torch.equal(int_mm(left, b).double(), left.double() @ b.double())
    out = torch.empty(5, 7, dtype=torch.int32)
    assert torch.equal(int_mm_into(out, left, b).double(), left.double() @ b.double())


def test_a_relus_output_loses_less_than_in_int8():
    """Half the step on the left operand: 6 dB of its noise; the weight's stays."""
    torch.manual_seed(0)
    x, w = torch.randn(256, 512).relu(), torch.randn(512, 128)
    reference = x.double() @ w.double()
    gain = sqnr_db(emulate(UINT8, x, w), reference) - sqnr_db(emulate(INT8, x, w), reference)
    assert 1.5 < gain < 6.1
    assert sqnr_db(emulate(UINT8, x - 0.5, w), (x - 0.5).double() @ w.double()) < 10  # what a wrong use costs


class Mlp(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.up, self.down, self.activation = nn.Linear(32, 48), nn.Linear(48, 16), activation

    def forward(self, x):
        return self.down(self.activation(self.up(x)))


def of_unsigned(plan_for, model, x):
    with torch.no_grad():
        return plan_for("uint8_rowwise", model, x)


def test_a_layer_after_a_relu_runs_in_it_and_the_one_before_does_not(plan_for):
    model, x = Mlp(nn.ReLU()), torch.randn(64, 32)
    plan = of_unsigned(plan_for, model, x)
    captured = compile_op_by_op(model, plan)
    with torch.no_grad():
        out = captured(x)
        hidden = model.up(x).relu()
        expected = emulate(UINT8, hidden, model.down.weight.t()) + model.down.bias
    assert sqnr_db(out, expected) > 60
    (reject,) = captured.results["precision", "inference"].rejects
    assert reject.site == "up#0:output"
    assert "negative" in reject.reason


def test_a_plan_does_not_help_where_the_graph_cannot_prove_it(plan_for):
    """The plan was made for a ReLU; the model has a tanh by now."""
    plan = of_unsigned(plan_for, Mlp(nn.ReLU()), torch.randn(64, 32))
    model, x = Mlp(nn.Tanh()), torch.randn(64, 32)
    captured = compile_op_by_op(model, plan)
    with torch.no_grad():
        assert torch.equal(captured(x), model(x))
    assert len(captured.results["precision", "inference"].rejects) == 2


def test_what_speaks_against_it(sites_of):
    with torch.no_grad():
        ((before, after),) = sites_of(Mlp(nn.ReLU()), torch.randn(64, 32))
    ((trained, *_),) = sites_of(lambda x, w: x.relu() @ w, torch.randn(64, 32), torch.randn(32, 8, requires_grad=True))
    against = lambda site, target="cpu", provider="aten": reasons_against(provider, site, UINT8, TARGETS[target])  # noqa: E731
    assert against(after) == [] and against(after, provider="emulated") == []
    assert against(before) == ["the left operand may have negative values"]
    assert against(before, provider="emulated") == ["the left operand may have negative values"]
    assert "only the CPU's _int_mm takes uint8" in against(after, "h100")
    assert any("frozen weight" in reason for reason in against(trained))


def test_dispatch_prefers_it_where_it_is_as_fast(op_by_op):
    """Of candidates whose times timing cannot tell apart the most accurate is taken: at no time for int8 here."""
    torch.manual_seed(0)
    model, x = Mlp(nn.ReLU()), torch.randn(256, 32)
    with loka.probe(model) as probe, torch.no_grad():
        model(x)
    errors = probe.profile.sites["down#0:output"]
    assert errors.error("uint8_rowwise").sqnr_db > errors.error("int8_rowwise").sqnr_db + 1
    assert probe.profile.sites["up#0:output"].error("uint8_rowwise").mere > 0.5
    plan = loka.dispatch(probe.profile, options=loka.Options(recipes=("uint8_rowwise",), min_speedup=0))
    assert plan.decisions["up#0:output"].chosen == KEPT and plan.decisions["down#0:output"].lowered
