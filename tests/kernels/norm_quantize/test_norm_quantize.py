"""loka::norm_quantize: the Triton kernel (interpreted where there is no GPU) and its reference, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.kernels.launch import arch_of
from loka_compile.kernels.norm_quantize.norm_quantize import (
    NormQuantize,
    empty_outputs,
    launch,
    norm_quantize,
    reference,
    specimens,
)
from loka_compile.kernels.norms import ACTIVATIONS, LONGEST_ROW, NORMS, RowNorm

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
HALF_ULP = {E4M3: 2.0**-4, E5M2: 2.0**-3, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
SMALLEST = {E4M3: 2.0**-9, E5M2: 2.0**-16, torch.float16: 2.0**-24}
TOP = {E4M3: 448.0, E5M2: 57344.0, torch.int8: 127.0}
EPS = 1e-5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# (columns, block): rows of one block and of several, of powers of two, primes, 1
ROWS = [(1, 0), (7, 0), (16, 0), (64, 0), (100, 0), (131, 0), (512, 0), (48, 16), (64, 32), (512, 256), (384, 192)]


def kernel(x, weight, bias, given_scale, norm, block, activation, dtype, eps=EPS, save=True):
    """What the op does with tensors on a GPU.

    Triton 3.7's interpreter rounds wrongly to FP8 (7.93 becomes 4) and bfloat16 (down): there the kernel stores what it
    would convert, in float32, and torch converts it.
    """
    call = NormQuantize(x, weight, bias, given_scale, RowNorm(norm, block, activation, dtype, eps, save))
    outputs = empty_outputs(call)
    made = launch(call, outputs, arch_of(x) if x.is_cuda else "sm_90")
    if not x.is_cuda and dtype.is_floating_point:
        wide = torch.empty(outputs.out.shape)
        replace(made, args={**made.args, "out": wide}).run()
        return outputs._replace(out=wide.to(dtype))
    made.run()
    return outputs


def oracle(x, weight, bias, norm, block, activation):
    """(y, statistics) in float64, block by block."""
    x = x.double()
    length = block or x.shape[-1]
    parts, means, rstds = [], [], []
    for part in x.split(length, -1):
        mean = part.mean(-1, keepdim=True) if norm == "layer" else torch.zeros_like(part[..., :1])
        rstd = ((part - mean) ** 2).mean(-1, keepdim=True).add(EPS).rsqrt()
        parts.append(part if norm == "none" else (part - mean) * rstd)
        means.append(mean)
        rstds.append(rstd)
    n = torch.cat(parts, -1)
    n = n if weight is None else n * weight.double()
    n = n if bias is None else n + bias.double()
    y = {
        "none": n,
        "relu": n * (n > 0),
        "silu": n / (1 + torch.exp(-n)),
        "hard_swish": n * (n + 3).clamp(0, 6) / 6,
        "gelu": n * torch.special.ndtr(n),
    }[activation]
    kept = {"none": [], "rms": rstds, "layer": means + rstds}[norm]
    return y, torch.cat(kept, -1) if kept else y[..., :0]


def check(got, x, weight, bias, given_scale, norm, block, activation, dtype):
    """Every value is the format's nearest one to the oracle's, but for what float32 arithmetic loses."""
    out, scale, statistics = got
    y, kept = oracle(x, weight, bias, norm, block, activation)
    assert out.dtype == dtype
    assert out.shape == x.shape
    assert statistics.shape == kept.shape
    length = block or x.shape[-1]
    size = x.double().abs().amax().item() if x.numel() else 0.0
    torch.testing.assert_close(statistics.double(), kept, rtol=3e-5, atol=1e-6 * size)
    if not x.numel():
        return
    # what float32 may lose of a row: its arithmetic is of values up to the row's largest, a mean's cancel
    lost = 3e-6 * length**0.5 * (y.abs().amax(-1, keepdim=True) + (1.0 if norm != "none" or bias is not None else 0.0))
    if norm == "layer":
        lost = lost + 1e-6 * length * (x.double().abs() * kept[..., -1:]).amax(-1, keepdim=True)
    if activation == "gelu":  # below 0 its 1 + erf cancels: what is lost is a share of what it reads
        lost = lost + 3e-7 * oracle(x, weight, bias, norm, block, "none")[0].abs().amax(-1, keepdim=True)
    steps = torch.ones(1, dtype=torch.float64)
    if dtype in TOP and given_scale is None:
        amax = y.abs().amax(-1, keepdim=True).clamp(min=1e-30 if dtype == torch.int8 else 1e-12)
        assert ((scale.double() * TOP[dtype] - amax).abs() <= 1e-6 * amax + lost).all()
        steps = scale.double()
    elif given_scale is not None:
        assert scale.shape == (0,)
        steps = given_scale.double()
        y = y.clamp(-TOP[dtype] * steps, TOP[dtype] * steps)
    else:
        assert scale.shape == (0,)
    rounding = 0.5 * steps if dtype == torch.int8 else y.abs() * HALF_ULP[dtype] + SMALLEST.get(dtype, 0) / 2 * steps
    assert ((out.double() * steps - y).abs() <= 1.001 * rounding + lost).all()


def draw(rows, columns, exponent, dtype, seed, weights, zero_rows=True):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) * 10.0**exponent
    if zero_rows:
        x = x * (torch.rand(rows, 1, generator=generator) > 0.2)
    weight = 1 + 0.5 * torch.randn(columns, generator=generator) if weights > 0 else None
    bias = 0.5 * torch.randn(columns, generator=generator) if weights > 1 else None
    return [None if each is None else each.to(DEVICE, dtype) for each in (x, weight, bias)]


@settings(max_examples=120, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 2, 5, 33]),
    shape=st.sampled_from(ROWS),
    exponent=st.integers(-6, 12),
    norm=st.sampled_from(NORMS),
    activation=st.sampled_from(ACTIVATIONS),
    weights=st.integers(0, 2),
    dtype=st.sampled_from([E4M3, E5M2, torch.int8, torch.bfloat16, torch.float32]),
    fixed=st.booleans(),
    of=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_kernel_and_reference_against_float64(rows, shape, exponent, norm, activation, weights, dtype, fixed, of, seed):
    columns, block = shape
    x, weight, bias = draw(rows, columns, exponent, of, seed, weights)
    scale = torch.tensor([0.01], device=DEVICE) if fixed and dtype in (E4M3, E5M2) else None
    args = x, weight, bias, scale, norm, block, activation, dtype
    check(kernel(*args), *args)
    check(reference(NormQuantize.bind(*args, EPS, True)), *args)


def test_gelu_is_exact_to_float32():
    x = torch.linspace(-12, 12, 4096, device=DEVICE).reshape(8, 512)
    out, _, _ = kernel(x, None, None, None, "none", 0, "gelu", torch.float32)
    expected = torch.nn.functional.gelu(x.double())
    assert (out.double() - expected).abs().max() < 1e-6
    assert ((out.double() - expected).abs() <= 1e-5 * expected.abs())[x > -1].all()


def test_without_save_there_are_no_statistics():
    x = torch.randn(5, 64, device=DEVICE)
    args = x, None, None, None, "layer", 0, "relu", E4M3, EPS
    assert kernel(*args, save=False)[2].shape == norm_quantize(*args, False)[2].shape == (5, 0)
    assert torch.equal(kernel(*args, save=False)[0].float(), kernel(*args)[0].float())


def test_the_same_bits_every_time():
    x, weight, bias = draw(37, 131, 0, torch.bfloat16, 5, 2)
    first, second = (kernel(x, weight, bias, None, "layer", 0, "silu", E4M3) for _ in range(2))
    assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(first, second, strict=True))


def test_a_row_does_not_depend_on_its_neighbours():
    """Which rows share a program is the launch's business."""
    x, weight, _ = draw(40, 100, 0, torch.bfloat16, 6, 1)
    together = kernel(x, weight, None, None, "rms", 0, "silu", E4M3)
    alone = [kernel(x[i : i + 1], weight, None, None, "rms", 0, "silu", E4M3) for i in range(40)]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(whole.float(), torch.cat([part.float() for part in parts]))


@pytest.mark.parametrize(("norm", "block"), [("none", 0), ("rms", 0), ("rms", 4), ("layer", 0), ("layer", 4)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_of_the_reference(norm, block, activation):
    x, weight, bias = (each.double().requires_grad_() for each in draw(3, 12, 0, torch.float32, 7, 2, False))

    def y(*args):
        return reference(NormQuantize.bind(*args, None, norm, block, activation, torch.float64, EPS, False))[0]

    assert torch.autograd.gradcheck(y, [each.cpu() for each in (x, weight, bias)])


@pytest.mark.parametrize("dtype", [E4M3, torch.int8, torch.bfloat16])
@pytest.mark.parametrize(("norm", "block", "save"), [("none", 0, False), ("rms", 16, True), ("layer", 0, True)])
def test_opcheck(dtype, norm, block, save):
    x, weight, bias = draw(6, 48, 0, torch.float32, 8, 2)
    args = x.reshape(2, 3, 48), weight, bias, None, norm, block, "relu", dtype, EPS, save
    torch.library.opcheck(torch.ops.loka.norm_quantize.default, args)


def test_the_op_takes_rows_that_are_not_contiguous_and_any_number_of_dimensions():
    x = torch.randn(4, 3, 64, device=DEVICE)
    expected = norm_quantize(x.reshape(-1, 64), None, None, None, "rms", 32, "relu", E4M3, EPS, True)
    for given_x in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
        got = norm_quantize(given_x, None, None, None, "rms", 32, "relu", E4M3, EPS, True)
        assert [each.shape[:2] for each in got] == [(4, 3)] * 3
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a.reshape(b.shape).float(), b.float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3, 32, dtype=torch.int64)}, "x must be rows of floats, got torch.int64"),
        ({"x": torch.ones(3, 0)}, r"x must be rows of floats, got .* of shape \(3, 0\)"),
        ({"weight": torch.ones(31)}, r"weight must have shape \(32,\), got \(31,\)"),
        ({"bias": torch.ones(32, 1)}, "bias must have shape"),
        ({"given": torch.ones(3, 1)}, r"given must have shape \(1,\)"),
        ({"given": torch.ones(1), "dtype": torch.int8}, "given must have shape"),
        ({"norm": "block"}, "norm must be one of none, rms, layer, got 'block'"),
        ({"block": 12}, "must divide a row of 32 values, got 12"),
        ({"activation": "swish"}, "activation must be one of .*got 'swish'"),
        ({"dtype": torch.uint8}, "got torch.uint8"),
    ],
)
def test_bad_arguments(change, message):
    args = {"x": torch.ones(3, 32), "weight": None, "bias": None, "given": None, "norm": "rms", "block": 0}
    args |= {"activation": "relu", "dtype": E4M3, "eps": EPS, "save": True} | change
    with pytest.raises(ValueError, match=message):
        norm_quantize(*args.values())


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_specimens_are_launches_on_no_memory(arch):
    listed = specimens(arch)
    assert len({each.name for each in listed}) == len(listed)
    for each in listed:
        assert each.launch.args["x"].is_meta
        assert each.launch.constants["N"] <= LONGEST_ROW
        assert each.launch.nbytes >= sum(
            value.numel() * value.element_size() for value in each.launch.args.values() if torch.is_tensor(value)
        )
