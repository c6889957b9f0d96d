"""loka::norm_quantize_backward: the Triton kernels (interpreted where there is no GPU) and the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.kernels import norms
from loka_compile.kernels.launch import arch_of
from loka_compile.kernels.norm_quantize.norm_quantize import norm_quantize
from loka_compile.kernels.norm_quantize.norm_quantize_backward import (
    NormQuantizeBackward,
    empty_outputs,
    launches,
    norm_quantize_backward,
    reference,
    specimens,
)
from loka_compile.kernels.norms import ACTIVATIONS, NORMS
from loka_compile.spec.chips import CHIPS

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
HALF_ULP = {E4M3: 2.0**-4, E5M2: 2.0**-3, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}
SMALLEST = {E4M3: 2.0**-9, E5M2: 2.0**-16}
TOP = {E4M3: 448.0, E5M2: 57344.0}
EPS = 1e-5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = [(1, 0), (7, 0), (64, 0), (131, 0), (48, 16), (512, 256), (384, 192)]


def kernel(grad, x, statistics, weight, bias, norm, block, activation, dtype, copied, summed=True, gain=1.0):
    """What the op does with tensors on a GPU; what the interpreter would round wrongly, torch rounds."""
    named = norm, block, activation, dtype, copied, summed, gain
    call = NormQuantizeBackward(grad, x, statistics, weight, bias, *named)
    outputs = empty_outputs(call)
    arch = arch_of(x) if x.is_cuda else "sm_90"
    for launch in launches(call, outputs, arch):
        names = ("out", "grad_weight", "grad_bias", "total")
        written = {} if x.is_cuda else {name: launch.args[name] for name in names if name in launch.args}
        wide = {name: torch.full(each.shape, float("nan")) for name, each in written.items()}
        replace(launch, args={**launch.args, **wide}).run()
        for name, each in written.items():
            each.copy_(wide[name])
    return outputs


def oracle(grad, x, weight, bias, norm, block, activation):
    """(gradient of x, of weight, of bias) in float64, by autograd through torch's own functions."""
    leaves = [None if each is None else each.double().requires_grad_() for each in (x, weight, bias)]
    n, statistics = norms.normalize(leaves[0], norm, block, EPS)
    y = norms.activate(norms.affine(n, *leaves[1:]), activation)
    wanted = [each for each in leaves if each is not None]
    found = iter(torch.autograd.grad(y, wanted, grad.double()))
    return [None if each is None else next(found) for each in leaves], statistics.detach()


def check(got, grad, x, weight, bias, norm, block, activation, dtype, copied, summed=True, gain=1.0):
    """Every value is the format's nearest one to the oracle's, but for what float32 arithmetic loses."""
    out, scale, copy, copy_scale, *sums, total = got
    grad = grad.double() * gain
    (dx, *by_sum), statistics = oracle(grad, x, weight, bias, norm, block, activation)
    assert (out.dtype, out.shape) == (dtype, x.shape)
    assert (copy.shape, copy_scale.shape) == (((x.shape[1], x.shape[0]), (x.shape[1], 1)) if copied else ((0,), (0,)))
    if not x.numel():
        return
    length = block or x.shape[1]
    w = 1.0 if weight is None else weight.double().abs().amax().item()
    steep = 1.3 * w * grad.double().abs().amax(1, keepdim=True)
    rstd = 1.0 if norm == "none" else statistics[:, -(x.shape[1] // length) :].amax(1, keepdim=True)
    n_size = x.double().abs().amax(1, keepdim=True) * rstd
    lost = 3e-6 * length**0.5 * steep * rstd * (4 + n_size) * (1 + w)
    if norm == "layer":
        lost = lost * (1 + n_size)  # a mean cancels
    for computed, expected, name in zip(sums, by_sum, ("weight", "bias"), strict=True):
        if expected is None:
            assert computed.shape == (0,)
        else:
            slack = 2e-5 * (grad.double().abs().sum(0) * 1.3) * (1 + n_size.amax()) ** (3 if norm == "layer" else 2)
            slack = slack + expected.abs() * HALF_ULP[computed.dtype]
            assert ((computed.double() - expected).abs() <= slack + 1e-30).all(), name
    assert total.shape == ((x.shape[1],) if summed else (0,))
    if summed:
        slack = lost.sum() + 1e-6 * dx.abs().sum(0) + dx.sum(0).abs() * HALF_ULP[total.dtype]
        assert ((total.double() - dx.sum(0)).abs() <= slack + 1e-30).all()
    for q, step, exact, loses in ((out, scale, dx, lost), (copy, copy_scale, dx.t(), lost.amax())):
        if not q.numel():
            continue
        steps = torch.ones(1, dtype=torch.float64)
        if dtype in TOP:
            amax = exact.abs().amax(1, keepdim=True).clamp(min=1e-12)
            assert ((step.double() * TOP[dtype] - amax).abs() <= 1e-6 * amax + loses).all()
            steps = step.double()
        rounding = exact.abs() * HALF_ULP[dtype] + SMALLEST.get(dtype, 0) / 2 * steps
        assert ((q.double() * steps - exact).abs() <= 1.001 * rounding + loses).all()


def draw(rows, columns, exponent, dtype, seed, weights, norm, block):
    """(grad, x, statistics, weight, bias)"""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) * 10.0**exponent
    x = (x * (torch.rand(rows, 1, generator=generator) > 0.2)).to(DEVICE, dtype)
    grad = (torch.randn(rows, columns, generator=generator) * 1e-3).to(DEVICE, dtype)
    weight = 1 + 0.5 * torch.randn(columns, generator=generator) if weights > 0 else None
    bias = 0.5 * torch.randn(columns, generator=generator) if weights > 1 else None
    vectors = [None if each is None else each.to(DEVICE, dtype) for each in (weight, bias)]
    statistics = norms.normalize(x.double(), norm, block, EPS)[1].float()
    return grad, x, statistics, *vectors


@settings(max_examples=120, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 2, 5, 33, 70]),
    shape=st.sampled_from(ROWS),
    exponent=st.integers(-3, 3),
    norm=st.sampled_from(NORMS),
    activation=st.sampled_from(ACTIVATIONS),
    weights=st.integers(0, 2),
    dtype=st.sampled_from([E4M3, E5M2, torch.bfloat16, torch.float32]),
    copied=st.booleans(),
    of=st.sampled_from([torch.float32, torch.bfloat16]),
    summed=st.booleans(),
    gain=st.sampled_from([1.0, 1.25]),
    seed=st.integers(0, 2**31),
)
def test_kernels_and_reference_against_autograd(
    rows, shape, exponent, norm, activation, weights, dtype, copied, of, summed, gain, seed
):
    columns, block = shape
    grad, x, statistics, weight, bias = draw(rows, columns, exponent, of, seed, weights, norm, block)
    if norm == "none" and exponent > 1:  # nothing would bound z
        x = x / 10.0**exponent
    named = norm, block, activation, dtype, copied and dtype in TOP, summed, gain
    if rows:
        got = kernel(grad, x, statistics, weight, bias, *named)
        check(got, grad, x, weight, bias, *named)
    call = NormQuantizeBackward.bind(grad, x, statistics, weight, bias, *named)
    check(reference(call), grad, x, weight, bias, *named)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("norm", "block"), [("none", 0), ("rms", 16), ("layer", 0)])
def test_what_is_not_finite_never_becomes_an_ordinary_number(bad, norm, block):
    grad, x, statistics, weight, bias = draw(5, 32, 0, torch.float32, 3, 2, norm, block)
    grad[1, 5] = bad
    args = grad, x, statistics, weight, bias, norm, block, "silu", E4M3, True, True, 1.0
    for got in (kernel(*args), reference(NormQuantizeBackward.bind(*args))):
        harmed = got[0].float().isnan()
        assert harmed[1, 5] and not harmed[[0, 2, 3, 4]].any()
        assert torch.equal(harmed.t(), got[2].float().isnan())
        assert got[1].isfinite().all() and got[3].isfinite().all()
        if norm == "none":
            assert harmed.sum() == 1


def test_zero_gradients_give_zeros():
    grad, x, statistics, weight, bias = draw(5, 32, 0, torch.float32, 3, 2, "rms", 0)
    out, scale, copy, copy_scale, *sums = kernel(
        torch.zeros_like(grad), x, statistics, weight, bias, "rms", 0, "relu", E4M3, True
    )
    assert (out.float() == 0).all() and (copy.float() == 0).all()
    assert (scale > 0).all() and (copy_scale > 0).all()
    assert all((each == 0).all() for each in sums)


def test_a_program_goes_through_many_tiles(monkeypatch):
    """Sums over more tiles than there are parts."""
    monkeypatch.setattr("loka_compile.kernels.norm_quantize.norm_quantize_backward.PARTS", 3)
    drawn = draw(203, 96, 0, torch.float32, 9, 2, "layer", 0)
    named = "layer", 0, "silu", E4M3, True, True, 1.0
    check(kernel(*drawn, *named), drawn[0], drawn[1], *drawn[3:], *named)


def test_the_same_bits_every_time():
    drawn = draw(70, 131, 0, torch.bfloat16, 5, 2, "layer", 0)
    first, second = (kernel(*drawn, "layer", 0, "silu", E4M3, True) for _ in range(2))
    assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("norm", "block"), [("none", 0), ("rms", 0), ("rms", 4), ("layer", 0), ("layer", 4)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("save", [False, True])
def test_gradcheck_of_norm_quantize(norm, block, activation, save):
    torch.manual_seed(7)
    x = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(12, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def y(*args):
        return norm_quantize(*args, None, norm, block, activation, torch.float64, EPS, save)[0]

    assert torch.autograd.gradcheck(y, (x, weight, bias))
    assert torch.autograd.gradcheck(lambda x: y(x, None, None), (x,))
    assert torch.autograd.gradcheck(y, (x[0, 0], weight, bias))  # one row, without a dimension of rows
    assert torch.autograd.gradcheck(y, (x[:0], weight, bias))


def test_a_compiled_module_trains():
    torch.manual_seed(0)
    x = torch.randn(6, 64, requires_grad=True)
    weight = torch.randn(64, requires_grad=True)

    def f(x, weight):
        return norm_quantize(x, weight, None, None, "rms", 0, "silu", torch.float32, EPS, True)[0].square().sum()

    expected = torch.autograd.grad(f(x, weight), (x, weight))
    got = torch.autograd.grad(torch.compile(f, backend="aot_eager", fullgraph=True)(x, weight), (x, weight))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_what_was_quantized_has_no_gradient():
    x = torch.randn(6, 64, requires_grad=True)
    out = norm_quantize(x, None, None, None, "rms", 0, "relu", E4M3, EPS, True)[0]
    with pytest.raises(RuntimeError, match="float8_e4m3fn has no gradient; quantize after the norm in training"):
        out.float().sum().backward()


@pytest.mark.parametrize("dtype", [E4M3, torch.bfloat16])
@pytest.mark.parametrize(("norm", "block"), [("none", 0), ("rms", 16), ("layer", 0)])
def test_opcheck(dtype, norm, block):
    drawn = draw(6, 48, 0, torch.float32, 8, 2, norm, block)
    args = *drawn, norm, block, "relu", dtype, dtype == E4M3, norm == "rms", 1.25
    torch.library.opcheck(torch.ops.loka.norm_quantize_backward.default, args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3, 31)}, r"grad and x must be \(R, N\), got \(3, 32\) and \(3, 31\)"),
        ({"statistics": torch.ones(3, 0)}, r"statistics must be \(3, 1\), .*got \(3, 0\)"),
        ({"norm": "block"}, "norm must be one of"),
        ({"dtype": torch.int8}, "got torch.int8"),
        ({"dtype": torch.bfloat16}, "FP8 with a copy, got torch.bfloat16"),
    ],
)
def test_bad_arguments(change, message):
    args = {"grad": torch.ones(3, 32), "x": torch.ones(3, 32), "statistics": torch.ones(3, 1), "weight": None}
    args |= {"bias": None, "norm": "rms", "block": 0, "activation": "relu", "dtype": E4M3, "copied": True}
    args |= {"summed": False, "gain": 1.0} | change
    with pytest.raises(ValueError, match=message):
        norm_quantize_backward(*args.values())


@pytest.mark.parametrize("arch", CHIPS)
def test_specimens_are_launches_on_no_memory(arch):
    for each in specimens(arch):
        assert all(value.is_meta for value in each.launch.args.values() if torch.is_tensor(value))


@pytest.mark.parametrize("norm", ["none", "rms"])
@pytest.mark.parametrize("activation", ["relu", "hard_swish"])
def test_a_gradient_that_is_nan_does_not_come_through_what_is_cut_off(norm, activation):
    """As in torch: a row of which everything is cut off has no gradient, whatever comes from above."""
    x = torch.tensor([[-5.0] * 16, [5.0] * 16], device=DEVICE)
    weight = None if norm == "none" else torch.full((16,), 5.0, device=DEVICE)
    grad = torch.full_like(x, float("nan"))
    _, statistics = norms.normalize(x, norm, 0, EPS)
    named = norm, 0, activation, torch.float32, False
    by_reference = reference(NormQuantizeBackward(grad, x, statistics, weight, None, *named, False, 1.0)).out
    by_kernel = kernel(grad, x, statistics, weight, None, *named, summed=False).out
    for out in (by_reference, by_kernel):
        assert not out[0].any() and out[1].isnan().all()
