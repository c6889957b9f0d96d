"""loka::fm: the Triton kernel (interpreted where there is no GPU) and its reference, against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import loka_compile as loka
from loka_compile.kernels.fm import fm as module
from loka_compile.kernels.launch import arch_of
from loka_compile.kernels.norms import NORMS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF_ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
EPS = 1e-5


def kernel(x, y, weight, bias, norm):
    """What the op does on a GPU. Triton 3.7's interpreter multiplies and rounds bfloat16 wrongly: there in float32."""
    arch, dtype = arch_of(x) if x.is_cuda else "sm_90", x.dtype
    if not x.is_cuda and dtype == torch.bfloat16:
        x, y = x.float(), y.float()
    out = x.new_full((x.shape[0], *y.shape[-2:]), 99)
    module.launch(x, y, weight, bias, out, norm, EPS, arch).run()
    return out.to(dtype)


def oracle(x, y, weight, bias, norm):
    """In float64, and what rounding x x^T may change of it, both before the affine."""
    x, y = x.double(), y.double()
    o = x @ (x.mT @ y)
    lost = (x @ x.mT).abs() @ y.abs()
    flat = o.flatten(1)
    mean = flat.mean(-1, keepdim=True) if norm == "layer" else 0.0
    squares = (flat - mean).square().mean(-1, keepdim=True)
    rstd = torch.ones_like(squares) if norm == "none" else (squares + EPS).rsqrt()
    out = (flat - mean) * rstd
    out = out if weight is None else out * weight.double()
    out = out if bias is None else out + bias.double()
    # an error in o moves the row's mean and rstd too
    lost = lost.flatten(1)
    spread = lost + lost.square().mean(-1, keepdim=True).sqrt() * (1 + ((flat - mean) * rstd).abs())
    lost = spread * rstd * (1.0 if weight is None else weight.double().abs())
    return out.unflatten(1, o.shape[1:]), lost.unflatten(1, o.shape[1:])


def draw(b, n, d, k, dtype, seed, weights=0, shared=False, exponent=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE)

    x, y = normal(b, n, d) * 10.0**exponent, normal(*((n, k) if shared else (b, n, k))) / n**0.5
    weight, bias = (normal(n * k) if weights > i else None for i in (0, 1))
    return x.to(dtype), y.to(dtype), weight, bias


SHAPES = st.tuples(
    st.sampled_from([0, 1, 3]),
    st.sampled_from([1, 2, 13, 24, 40, 64]),
    st.sampled_from([1, 7, 64, 100, 224]),
    st.sampled_from([1, 8, 24, 31, 150, 300]),
)


@settings(max_examples=60, deadline=None)
@given(
    shape=SHAPES,
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    norm=st.sampled_from(NORMS),
    weights=st.integers(0, 2),
    shared=st.booleans(),
    exponent=st.sampled_from([-1, 0]),
    seed=st.integers(0, 2**31),
)
def test_kernel_against_float64(shape, dtype, norm, weights, shared, exponent, seed):
    x, y, weight, bias = draw(*shape, dtype, seed, weights, shared, exponent)
    out = kernel(x, y, weight, bias, norm)
    expected, lost = oracle(x, y, weight, bias, norm)
    assert out.shape == expected.shape
    assert ((out - expected).abs() <= 1.01 * HALF_ULP[dtype] * (lost + expected.abs()) + 1e-5).all()


@settings(max_examples=60, deadline=None)
@given(
    shape=SHAPES,
    norm=st.sampled_from(NORMS),
    weights=st.integers(0, 2),
    shared=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_reference_against_float64(shape, norm, weights, shared, seed):
    x, y, weight, bias = draw(*shape, torch.float32, seed, weights, shared)
    out = module.reference(x, y, weight, bias, norm, EPS)
    expected, lost = oracle(x, y, weight, bias, norm)
    assert ((out - expected).abs() <= 4e-6 * (lost + expected.abs()) * shape[1] + 1e-5).all()


def test_tiles_of_different_means_are_merged():
    """Three tiles of 256 columns, of means -2, 0 and 5, the last one short."""
    x, y, *_ = draw(2, 16, 8, 700, torch.float16, 9)
    x, y = torch.ones_like(x) / 8, (y / 16).sub_(2)
    y[..., 256:512] += 2
    y[..., 512:] += 7
    out = kernel(x, y, None, None, "layer")
    expected, _ = oracle(x, y, None, None, "layer")
    assert (out - expected).abs().max() < 5e-3


def test_a_mean_far_from_zero_does_not_cancel():
    """Variance from sums and sums of squares would be lost in float32 here; three tiles, of which the last is short."""
    x = torch.ones(2, 16, 8, device=DEVICE)
    y = 1 + 1e-3 * torch.randn(2, 16, 700, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    assert torch.finfo(torch.float32).eps * 128**2 > 1e-3**2
    out = kernel(x, y, None, None, "layer")
    expected, _ = oracle(x, y, None, None, "layer")
    assert (out - expected).square().mean().sqrt() < 0.02


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("weights", [0, 1, 2])
def test_gradients_of_the_op_are_those_of_the_reference(norm, shared, weights):
    x, y, weight, bias = draw(3, 4, 6, 5, torch.float64, 1, weights, shared)
    x, y = x.cpu(), y.cpu()
    weight, bias = (None if each is None else each.double().cpu() for each in (weight, bias))
    leaves = [each.requires_grad_() for each in (x, y, weight, bias) if each is not None]

    def run(function):
        return function(x, y, weight, bias, norm, EPS)

    assert torch.autograd.gradcheck(lambda *_: run(module.reference), leaves)
    grads = [torch.autograd.grad(run(f).sin().sum(), leaves) for f in (module.reference, torch.ops.loka.fm.default)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("norm", "weights", "shared"), [("none", 0, True), ("rms", 1, False), ("layer", 2, False)])
def test_opcheck(dtype, norm, weights, shared):
    x, y, weight, bias = draw(3, 4, 8, 5, dtype, 2, weights, shared)
    x, y = x.requires_grad_(), y.requires_grad_()
    torch.library.opcheck(torch.ops.loka.fm.default, (x, y, weight, bias, norm, EPS))


def test_the_same_bits_every_time():
    x, y, weight, bias = draw(5, 24, 100, 300, torch.float16, 3, 2)
    assert torch.equal(kernel(x, y, weight, bias, "layer"), kernel(x, y, weight, bias, "layer"))


def test_a_sample_does_not_harm_its_neighbours():
    x, y, *_ = draw(3, 13, 20, 31, torch.float16, 4)
    clean = kernel(x, y, None, None, "layer")
    x[1, 2, 3] = float("nan")
    harmed = kernel(x, y, None, None, "layer")
    assert torch.equal(clean[[0, 2]], harmed[[0, 2]]) and harmed[1].isnan().all()


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((2, 65, 8, 4), torch.bfloat16, "65 tokens: beyond 64"),
        ((2, 8, 300, 4), torch.bfloat16, "tokens of 300 values: the kernel holds at most 256"),
        ((2, 8, 8, 4), torch.float32, "multiplies bfloat16 and float16, not torch.float32"),
    ],
)
def test_what_the_kernel_refuses_runs_unfused(shape, dtype, reason):
    x, y, *_ = draw(*shape, dtype, 5)
    [why] = module.reasons_against(x, y)
    assert reason in why
    expected, _ = oracle(x, y, None, None, "rms")
    torch.testing.assert_close(loka.fm(x, y, norm="rms").double(), expected, rtol=2e-2, atol=2e-2)
    assert not module.reasons_against(*draw(2, 64, 256, 3, torch.bfloat16, 5)[:2])


def test_few_tokens_are_multiplied_in_the_cheaper_order():
    from torch.utils.flop_counter import FlopCounterMode

    for n, expected in ((4, 2 * 4 * 4 * (32 + 32)), (60, 2 * 2 * 60 * 32 * 32)):
        x, y, *_ = draw(1, n, 32, 32, torch.float32, 6)
        with FlopCounterMode(display=False) as counted:
            loka.fm(x.cpu(), y.cpu())
        assert counted.get_total_flops() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "batch"}, "norm must be one of none, rms, layer, got 'batch'"),
        ({"x": torch.ones(4, 8)}, r"x must be \(B, N, D\) .*\(4, 8\)"),
        ({"x": torch.ones(2, 4, 8).half()}, "got torch.float16 .* and torch.float32"),
        ({"y": torch.ones(2, 5, 3)}, r"y must be \(B, N, K\) or \(N, K\) .*got \(2, 5, 3\)"),
        ({"y": torch.ones(3, 4, 3)}, r"got \(3, 4, 3\)"),
        ({"weight": torch.ones(3)}, r"weight must have one value for each of 12 outputs, got \(3,\)"),
    ],
)
def test_bad_arguments(change, message):
    args = {"x": torch.ones(2, 4, 8), "y": torch.ones(2, 4, 3)} | change
    with pytest.raises(ValueError, match=message):
        loka.fm(args.pop("x"), args.pop("y"), **args)


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_specimens_are_launches_on_no_memory(arch):
    listed = module.specimens(arch)
    assert len({each.name for each in listed}) == len(listed)
    assert all(each.launch.args["x"].is_meta and each.unfused for each in listed)
