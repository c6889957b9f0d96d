"""Bad input: NaN and infinity stay in their place, errors are clear."""

from __future__ import annotations

import pytest
import torch

from loka_compile.probe.score import sqnr_db
from tests.backend.models import SIGNED, Linear, compiled_with


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("recipe", SIGNED)
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_a_value_that_is_not_finite_stays_so_in_its_row(recipe, bad, grad, plan_for, op_by_op):
    model, x = Linear(), torch.randn(6, 32)
    compiled = compiled_with(plan_for(recipe, model, x), model)
    with torch.set_grad_enabled(grad):
        clean = compiled(x).detach()
        x[2, 5] = bad
        out = compiled(x).detach()
    others = [0, 1, 3, 4, 5]
    assert not out[2].isfinite().any()
    assert out[others].isfinite().all()
    if recipe != "fp8_tensorwise":  # one scale for all rows: the row that left took part in it
        torch.testing.assert_close(out[others], clean[others], rtol=0, atol=0)


@pytest.mark.parametrize("recipe", SIGNED)
def test_a_nan_in_a_weight_stays_in_its_column(recipe, plan_for, op_by_op):
    model, x = Linear(), torch.randn(6, 32)
    with torch.no_grad():
        model.fc.weight[4, 9] = float("nan")
        out = compiled_with(plan_for(recipe, model, x), model)(x)
    assert out[:, 4].isnan().all()
    block = recipe == "fp8_blockwise"
    assert out[:, [c for c in range(48) if c != 4]].isfinite().all() or block


@pytest.mark.parametrize("recipe", SIGNED)
def test_rows_of_zeros_give_the_bias(recipe, plan_for, op_by_op):
    model, x = Linear(), torch.randn(6, 32)
    x[1] = 0
    x[4] = 0
    with torch.no_grad():
        compiled = compiled_with(plan_for(recipe, model, x), model)
        torch.testing.assert_close(compiled(x)[[1, 4]], model.fc.bias.expand(2, -1), rtol=0, atol=0)
        torch.testing.assert_close(compiled(torch.zeros(6, 32)), model.fc.bias.expand(6, -1), rtol=0, atol=0)
        model.fc.weight.zero_()
        torch.testing.assert_close(compiled(x), model.fc.bias.expand(6, -1), rtol=0, atol=0)


@pytest.mark.parametrize("size", [1e-30, 1e-13, 1e13, 1e30])
@pytest.mark.parametrize("recipe", ["int8_rowwise", "fp8_rowwise", "fp8_tensorwise", "fp8_blockwise"])
def test_very_small_and_very_large_activations_are_finite(recipe, size, plan_for, op_by_op):
    model, x = Linear(bias=False), torch.randn(6, 32) * size
    with torch.no_grad():
        out = compiled_with(plan_for(recipe, model, x), model)(x)
    assert out.isfinite().all()
    if size > 1e-12:
        assert sqnr_db(out, model(x)) > 20
    else:  # below the floor of amax: towards zero, never larger than they were
        assert out.abs().max() <= 2 * model(x).abs().max()


def test_an_integer_matmul_is_left_alone(sites_of, plan_for, op_by_op):
    def count(a, b, x, w):
        return a @ b, x @ w

    args = torch.randint(9, (4, 8)), torch.randint(9, (8, 4)), torch.randn(4, 8), torch.randn(8, 4)
    with torch.no_grad():
        out, _ = compiled_with(plan_for("int8_rowwise", count, *args), count)(*args)
        assert torch.equal(out, args[0] @ args[1])
        # nor does a look at the first batch trip over it
        compiled = torch.compile(count, backend="loka", options={"measure_calls": 0})
        assert torch.equal(compiled(*args)[0], args[0] @ args[1])


def test_tensors_on_a_device_without_kernels_are_a_clear_error(plan_for):
    model = Linear()
    plan = plan_for("int8_rowwise", model, torch.randn(5, 32))
    with pytest.raises(Exception, match="loka compiles for cpu and cuda; this graph has tensors on meta"):
        compiled_with(plan, model.to("meta"))(torch.randn(5, 32, device="meta"))


def test_bad_options_are_reported_before_anything_is_compiled():
    with pytest.raises(Exception, match=r"unknown option 'plam'.*plan"):
        torch.compile(Linear(), backend="loka", options={"plam": None})(torch.randn(5, 32))
    with pytest.raises(Exception, match=r"cannot read plan nowhere\.json"):
        torch.compile(Linear(), backend="loka", options={"plan": "nowhere.json"})(torch.randn(5, 32))
