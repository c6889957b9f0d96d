"""Modelled times: the numbers of one shape by hand, and the economics that follow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy
import torch

from loka_compile.dispatch import roofline
from loka_compile.dispatch.candidates import fit
from loka_compile.dispatch.epilogue import emits, fuses, takes_epilogue
from loka_compile.dispatch.roofline import keep_us
from loka_compile.spec.decision import Candidate
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Operand, Site
from loka_compile.spec.sizes import Sizes
from loka_compile.spec.target import TARGETS

H100 = TARGETS["h100"]
FLOPS, BYTES = 0.78, 3.35e12 * 0.92


def site(sizes, dtype=torch.bfloat16, static_rhs=False):
    numbers = map(sympy.Integer, (sizes.batch, sizes.M, sizes.N, sizes.K))
    return Site("fc#0:output", "mm", "output", *numbers, dtype, static_rhs=static_rhs)


def cost(where, sizes, recipe, target, provider):
    return roofline.cost(fit(Candidate(recipe.name, provider), where, target), sizes, target)


def us(recipe, M, N, K, batch=1, target=H100, **more):
    sizes = Sizes(batch, M, N, K)
    where = site(sizes, **more)
    if recipe is None:
        return keep_us(where, sizes, target)
    return cost(where, sizes, RECIPES[recipe], target, "aten").alone_us


def test_a_bf16_product_by_hand():
    m, n, k = 8192, 4096, 1024
    compute, memory = 2 * m * n * k / (989e12 * FLOPS), 2 * (m * k + k * n + m * n) / BYTES
    assert compute > memory
    assert us(None, m, n, k) == pytest.approx((compute + 2e-6) * 1e6)
    memory = 2 * (64 * 64 + 64 * 64 + 64 * 64) / BYTES  # a small one waits for memory
    assert us(None, 64, 64, 64) == pytest.approx((memory + 2e-6) * 1e6)


def test_fp8_by_hand():
    m, n, k = 8192, 4096, 1024
    gemm = max(2 * m * n * k / (1979e12 * FLOPS), (m * k + k * n + 2 * m * n) / BYTES) + 2e-6
    cast = lambda elements: 3 * elements / BYTES + 2e-6  # noqa: E731 - two bytes read, one written
    look = lambda elements: 2 * elements / BYTES + 2e-6  # noqa: E731 - one pass for the amax
    assert us("fp8_rowwise", m, n, k) == pytest.approx((gemm + cast(m * k) + cast(k * n)) * 1e6)
    assert us("fp8_rowwise", m, n, k, static_rhs=True) == pytest.approx((gemm + cast(m * k)) * 1e6)
    tensorwise = gemm + cast(m * k) + look(m * k) + cast(k * n) + look(k * n)
    assert us("fp8_tensorwise", m, n, k) == pytest.approx(tensorwise * 1e6)


def test_more_work_never_takes_less_time():
    for recipe in (None, "fp8_rowwise", "fp8_tensorwise", "int8_rowwise"):
        for grown in range(3):
            times = []
            for size in (16, 64, 256, 1024, 4096):
                shape = [512, 512, 512]
                shape[grown] = size
                times.append(us(recipe, *shape))
            assert times == sorted(times)
        assert us(recipe, 64, 64, 64, batch=8) >= us(recipe, 64, 64, 64)


def test_fp8_loses_small_and_wins_large():
    assert us("fp8_rowwise", 256, 256, 256) > us(None, 256, 256, 256)  # the casts' launches alone
    assert us("fp8_rowwise", 16384, 8192, 8192) < 0.7 * us(None, 16384, 8192, 8192)


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if not t.measured], ids=str)
def test_every_gpu_has_every_recipes_time(target):
    for recipe in RECIPES:
        assert 0 < us(recipe, 512, 512, 512, target=target, dtype=torch.float32) < 1e5
    assert us("fp8_rowwise", 16384, 8192, 8192, target=target) < us(None, 16384, 8192, 8192, target=target)


def test_what_the_backward_reads_is_written_beside_the_result():
    sizes = Sizes(1, 4096, 512, 512)
    alone = replace(site(sizes), epilogue="norm")
    kept = replace(alone, kept=True)
    for recipe in ("bf16", "fp8_rowwise"):
        us = [cost(each, sizes, RECIPES[recipe], H100, "triton").kernel_us for each in (kept, alone)]
        assert us[0] - us[1] == pytest.approx(2 * 4096 * 512 / BYTES * 1e6)
    assert keep_us(kept, sizes, H100) == keep_us(alone, sizes, H100)  # a pass of its own leaves the product there
    symbol = sympy.Symbol("s", positive=True)
    us = cost(kept, Sizes(1, symbol, 512, 512), RECIPES["bf16"], H100, "triton").kernel_us
    assert float(us.subs(symbol, 4096)) == pytest.approx(cost(kept, sizes, RECIPES["bf16"], H100, "triton").kernel_us)


def test_only_plain_operands_and_rows_have_an_epilogue():
    """What fuse.py would refuse is not priced as fused: an activation behind a product of blocks is a pass."""
    sizes = Sizes(1, 4096, 1024, 1024)
    bare, before = site(sizes, static_rhs=True), replace(site(sizes, static_rhs=True), epilogue="activation")
    behind = 2 * 2 * 4096 * 1024 / BYTES * 1e6 + 2
    for recipe, more in (("bf16", 0.0), ("fp8_rowwise", 0.0), ("fp8_blockwise", behind), ("fp8_tensorwise", behind)):
        us = [cost(each, sizes, RECIPES[recipe], H100, "triton").kernel_us for each in (bare, before)]
        assert us[1] - us[0] == pytest.approx(more), recipe
        assert fuses(Candidate(recipe, "triton"), bare) == (more == 0.0) and not fuses(Candidate(recipe, "aten"), bare)
    of_gradient = replace(before, role="grad_input", gradient="lhs")  # kernels/gemm/gemm_gradient.py
    assert [fuses(Candidate(recipe, "triton"), of_gradient) for recipe in ("bf16", "fp8_rowwise")] == [True, False]


def test_grad_weights_casts_by_hand():
    """Scales that span the batch: a pass to look and one to cast, but that FP8 looks where rows are quantized too."""
    m, n, k = 512, 256, 65536
    x, g = Operand("x", "relu.default"), Operand("g", "mul.Tensor", flipped=True)
    where = replace(site(Sizes(1, m, n, k)), role="grad_weight", gradient="lhs", lhs=g, rhs=x)
    look, cast = ([(width * each * k / BYTES + 2e-6) * 1e6 for each in (m, n)] for width in (2, 3))
    for recipe, beside in (("fp8_rowwise", cast), ("fp8_blockwise", [0, 0]), ("int8_rowwise", [0, 0])):
        found = cost(where, Sizes(1, m, n, k), RECIPES[recipe], H100, "triton").casts
        assert [each.us for each in found] == pytest.approx([a + b for a, b in zip(look, cast, strict=True)])
        assert [each.beside_us for each in found] == pytest.approx(beside), recipe
    rowwise = cost(where, Sizes(1, m, n, k), RECIPES["fp8_rowwise"], H100, "triton").casts
    assert [each.by_rows for each in rowwise] == [(name, "float8_e4m3fn", "row", "-1") for name in "gx"]
    padded = replace(where, K=sympy.Integer(k - 1))  # with zeros the op that makes both is not theirs
    found = cost(padded, Sizes(1, m, n, k - 1), RECIPES["fp8_rowwise"], H100, "triton").casts
    assert not any(each.beside_us for each in found)
    assert not cost(where, Sizes(1, m, n, k), RECIPES["bf16"], H100, "triton").casts


# ---------------------------------------------------------------- padded


def test_a_padded_product_by_hand():
    """K 109 -> 112 makes the product and the cast larger; of N 100 -> 112 what is too much is left out by a copy."""
    m, n, k = 8192, 1024, 109
    gemm = (m * 112 + 112 * n + 2 * m * n) / BYTES + 2e-6
    cast = 3 * m * 112 / BYTES + 2e-6
    assert us("fp8_rowwise", m, n, k, static_rhs=True) == pytest.approx((gemm + cast) * 1e6)
    m, n, k = 8192, 100, 1024
    gemm = (m * k + k * 112 + 2 * m * 112) / BYTES + 2e-6
    cast = 3 * m * k / BYTES + 2e-6
    copy = 4 * m * 100 / BYTES + 2e-6
    assert us("fp8_rowwise", m, n, k, static_rhs=True) == pytest.approx((gemm + cast + copy) * 1e6)
    sizes = Sizes(1, m, n, k)
    where = replace(site(sizes, static_rhs=True), epilogue="activation")
    behind = 4 * m * 100 / BYTES + 2e-6  # it reads what it wants of the product
    got = cost(where, sizes, RECIPES["fp8_rowwise"], H100, "triton")
    assert got.kernel_us == pytest.approx((gemm + behind) * 1e6)
    where = replace(where, role="grad_input", gradient="lhs")  # a ReLU's gradient is a kernel that takes it whole
    got = cost(where, sizes, RECIPES["fp8_rowwise"], H100, "triton")
    assert got.kernel_us == pytest.approx((gemm + copy + behind) * 1e6)


def test_a_fusing_kernel_has_no_epilogue_for_padded_columns():
    for epilogue in ("activation", "norm"):
        where = replace(site(Sizes(1, 8192, 64, 109)), epilogue=epilogue)
        assert emits(where) and takes_epilogue(where)  # K may be padded
        where = replace(where, N=sympy.Integer(100))
        assert not emits(where) and not takes_epilogue(where)


def test_one_cast_serves_output_and_gradient_where_both_want_it_padded_alike():
    x = Operand("x", "relu.default")
    forward, backward = Sizes(1, 4096, 64, 109), Sizes(1, 64, 109, 4096)
    output = replace(site(forward), lhs=x)
    gradient = replace(site(backward), role="grad_weight", gradient="lhs", rhs=x)
    forms = lambda each, sizes: [c.form for c in cost(each, sizes, RECIPES["fp8_tensorwise"], H100, "aten").casts]  # noqa: E731
    assert forms(output, forward)[0] == forms(gradient, backward)[1] == ("x", "float8_e4m3fn", "tensor", "", "+0x3")
    odd = replace(gradient, K=sympy.Integer(4099))
    assert forms(odd, Sizes(1, 64, 109, 4099))[1] == ("x", "float8_e4m3fn", "tensor", "", "+13x3")
    flipped = replace(gradient, lhs=replace(x, flipped=True), rhs=Operand("g"))
    assert forms(replace(flipped, K=sympy.Integer(4099)), Sizes(1, 64, 109, 4099))[0][-1] == "+13x0"


def test_what_is_padded_does_not_ride():
    made = Operand("x", "relu.default", made_by="fc#1:output", only_products=True)
    for k in (112, 109):
        sizes = Sizes(1, 4096, 64, k)
        got = cost(replace(site(sizes, static_rhs=True), lhs=made), sizes, RECIPES["fp8_rowwise"], H100, "triton")
        assert [cast.rides for cast in got.casts] == [k == 112]


def test_padding_16_bits_is_a_copy_even_where_the_dtype_is_there():
    for k, copies in ((112, 0), (109, 1)):
        sizes = Sizes(1, 4096, 64, k)
        assert len(cost(site(sizes, static_rhs=True), sizes, RECIPES["bf16"], H100, "triton").casts) == copies
