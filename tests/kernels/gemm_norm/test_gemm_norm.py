"""loka::gemm_norm: the Triton kernel (interpreted where there is no GPU) and its reference, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.kernels.gemm_norm.epilogue import Epilogue, GemmNorm, empty_outputs, lazy_rstd, product_dtype
from loka_compile.kernels.gemm_norm.gemm_norm import reference
from loka_compile.kernels.gemm_norm.gemm_norm_launch import launches
from loka_compile.kernels.gemm_norm.gemm_norm_tiles import needs_two
from loka_compile.kernels.launch import arch_of
from loka_compile.kernels.norms import ACTIVATIONS, RowNorm
from loka_compile.kernels.quantize import quantize as quantization

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
HALF_ULP = {E4M3: 2.0**-4, E5M2: 2.0**-3, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
SMALLEST = {E4M3: 2.0**-9, E5M2: 2.0**-16, torch.float16: 2.0**-24}
TOP = {E4M3: 448.0, E5M2: 57344.0}
EPS = 1e-5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ARCHS = ["sm_90", "gfx942"]  # TMA and swapped products; plain loads
# (columns, block): rows of one block and of several, of powers of two, primes, 1, longer than a tile
ROWS = [(1, 0), (7, 0), (64, 0), (131, 0), (48, 16), (512, 256), (384, 192), (520, 0), (768, 256), (600, 200)]


def kernel(
    a,
    a_scale,
    b,
    b_scale,
    bias,
    residual,
    weight,
    shift,
    given_scale,
    norm,
    block,
    activation,
    dtype,
    arch="sm_90",
    save=True,
):
    """What the op does with tensors on a GPU.

    Triton 3.7's interpreter rounds wrongly to FP8 (7.93 becomes 4) and bfloat16 (down): there the kernel stores what it
    would convert, in float32, and torch converts it.
    """
    row = RowNorm(norm, block, activation, dtype, EPS, save)
    epilogue = Epilogue(bias, residual, weight, shift, given_scale, row)
    call = GemmNorm(a, a_scale, b, b_scale, epilogue)
    outputs = empty_outputs(call)
    for launch in launches(call, outputs, arch_of(a) if a.is_cuda else arch):
        if a.is_cuda:
            launch.run()
            continue
        args, narrow = dict(launch.args), []
        for name in ("out", "product"):
            value = args.get(name)
            if value is not None:
                base = getattr(value, "base", value)
                wide = torch.full(base.shape, float("nan"))
                args[name] = replace(value, base=wide) if base is not value else wide
                narrow.append((base, wide))
        replace(launch, args=args).run()
        for base, wide in narrow:
            base.copy_(wide)
    return outputs


def oracle(a, a_scale, b, b_scale, bias, residual, weight, shift, norm, block, activation):
    """(p, y, statistics, rstd of every value) in float64, block by block."""
    left, right = (x.double() if s is None else x.double() * s.double() for x, s in ((a, a_scale), (b, b_scale)))
    p = left @ right.t()
    p = p if bias is None else p + bias.double()
    p = p if residual is None else p + residual.double()
    kept = p
    if needs_two(p.shape[1], norm, block, False):
        kept = p.to(product_dtype(a)).double()
    parts, means, rstds, spread = [], [], [], []
    for part in kept.split((256 if norm == "lazy" else block) or kept.shape[1], 1):
        mean = part.mean(1, keepdim=True) if norm == "layer" else torch.zeros_like(part[:, :1])
        rstd = ((part - mean) ** 2).mean(1, keepdim=True).add(EPS).rsqrt()
        if norm == "lazy":
            rstds.append((part**2).sum(1, keepdim=True))
            rstd = torch.ones_like(rstd)
        elif norm == "none":
            rstd = torch.ones_like(rstd)
        else:
            rstds.append(rstd)
        means.append(mean)
        parts.append((part - mean) * rstd)
        spread.append(rstd.expand_as(part))
    n = torch.cat(parts, 1)
    n = n if weight is None else n * weight.double()
    n = n if shift is None else n + shift.double()
    y = {
        "none": n,
        "relu": n * (n > 0),
        "silu": n / (1 + torch.exp(-n)),
        "hard_swish": n * (n + 3).clamp(0, 6) / 6,
        "gelu": n * torch.special.ndtr(n),
    }[activation]
    statistics = {"none": [], "layer": means + rstds}.get(norm, rstds)
    return p, y, torch.cat(statistics, 1) if statistics else y[:, :0], torch.cat(spread, 1)


def check(got, a, a_scale, b, b_scale, bias, residual, weight, shift, given_scale, norm, block, activation, dtype):
    """Every value is the format's nearest one to the oracle's, but for what float32 arithmetic loses."""
    out, scale, statistics, product = got
    p, y, kept, rstd = oracle(a, a_scale, b, b_scale, bias, residual, weight, shift, norm, block, activation)
    saved = product.shape == p.shape and (norm == "lazy" or statistics.numel() == kept.numel())
    assert (out.dtype, out.shape) == (dtype, p.shape)
    assert saved or (product.shape == (0, p.shape[1]) and (norm == "lazy" or not statistics.numel()))
    assert scale.shape == ((p.shape[0], 1) if dtype in TOP and given_scale is None else (0,))
    if not p.numel():
        return
    left, right = (x.double() if s is None else x.double() * s.double() for x, s in ((a, a_scale), (b, b_scale)))
    terms = left.abs() @ right.abs().t()
    for added in (bias, residual):
        terms = terms if added is None else terms + added.double().abs()
    lost = 1e-6 * a.shape[1] ** 0.5 * terms.amax(1, keepdim=True)  # of the product
    half = HALF_ULP[product.dtype]
    if saved:
        assert ((product.double() - p).abs() <= 1.001 * half * p.abs() + SMALLEST.get(product.dtype, 0) + lost).all()
    if needs_two(p.shape[1], norm, block, scale.numel() > 0):  # p is rounded before the norm
        lost = lost + half * p.abs().amax(1, keepdim=True) + SMALLEST.get(product.dtype, 0) / 2
    columns = p.shape[1] if norm in ("none", "lazy") else block or p.shape[1]
    lost = lost * rstd.amax(1, keepdim=True)
    if norm != "none":
        lost = lost * 3  # the norm's own derivative
        size = p.abs().amax(1, keepdim=True)
        loose = 2e-5 + 4 * lost.clamp(max=1)
        loose = loose if norm != "lazy" else loose + 1e-4 + 8 * (lost / size.clamp(min=1e-30)).clamp(max=1)
        slack = loose * kept.abs() + 1e-6 * size + lost / rstd.amin(1, True)
        assert not saved or ((statistics.double() - kept).abs() <= slack).all()
    steepness = 1.2 * (1.0 if weight is None else weight.double().abs().amax().item())
    lost = lost * steepness
    lost = lost + 3e-6 * columns**0.5 * (y.abs().amax(1, keepdim=True) + (norm != "none" or shift is not None))
    if norm == "layer":
        lost = lost + 1e-6 * columns * steepness * (p.abs() * rstd).amax(1, keepdim=True)
    steps = torch.ones(1, dtype=torch.float64)
    if scale.numel():
        amax = y.abs().amax(1, keepdim=True).clamp(min=1e-12)
        assert ((scale.double() * TOP[dtype] - amax).abs() <= 1e-6 * amax + lost).all()
        steps = scale.double()
    elif given_scale is not None:
        steps = given_scale.double()
        y = y.clamp(-TOP[dtype] * steps, TOP[dtype] * steps)
    rounding = y.abs() * HALF_ULP[dtype] + SMALLEST.get(dtype, 0) / 2 * steps
    assert ((out.double() * steps - y).abs() <= 1.001 * rounding + lost).all()


def draw(m, n, k, exponent, dtype, seed, vectors="", zero_rows=True):
    """(a, a_scale, b, b_scale, bias, residual, weight, shift); FP8 by rows; vectors: which of the last four there are,
    `r` the residual."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(m, k, generator=generator) * 10.0**exponent
    if zero_rows:
        a = a * (torch.rand(m, 1, generator=generator) > 0.2)
    b = torch.randn(n, k, generator=generator) / k**0.5
    bias = 0.5 * 10.0**exponent * torch.randn(n, generator=generator) if "b" in vectors else None
    weight = 1 + 0.5 * torch.randn(n, generator=generator) if "w" in vectors else None
    shift = 0.5 * torch.randn(n, generator=generator) if "s" in vectors else None
    residual = 10.0**exponent * torch.randn(m, n, generator=generator) if "r" in vectors else None
    scales = [None, None]
    if dtype in TOP:
        (a, scales[0]), (b, scales[1]) = (quantization.reference(x, dtype, "row", -1) for x in (a, b))
    wide = torch.float32 if dtype in TOP else dtype
    rest = [x if x is None else x.to(DEVICE, wide) for x in (bias, residual, weight, shift)]
    rest[1] = rest[1] if rest[1] is None or dtype not in TOP else rest[1].bfloat16()
    a, b = a.to(DEVICE, dtype), b.to(DEVICE, dtype)
    return [a, *(s if s is None else s.to(DEVICE) for s in scales[:1]), b, *scales[1:], *rest]


@settings(max_examples=150, deadline=None)
@given(
    m=st.sampled_from([0, 1, 2, 5, 33, 70]),
    shape=st.sampled_from(ROWS),
    k=st.sampled_from([1, 7, 16, 32, 100, 131, 192]),
    exponent=st.integers(-6, 9),
    norm=st.sampled_from(["none", "rms", "layer"]),
    activation=st.sampled_from(ACTIVATIONS),
    vectors=st.sampled_from(["", "b", "w", "r", "ws", "br", "bws", "brws"]),
    of=st.sampled_from([E4M3, E5M2, torch.bfloat16, torch.float16]),
    dtype=st.sampled_from([E4M3, E5M2, torch.bfloat16, torch.float32]),
    fixed=st.booleans(),
    arch=st.sampled_from(ARCHS),
    save=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_kernel_and_reference_against_float64(
    m, shape, k, exponent, norm, activation, vectors, of, dtype, fixed, arch, save, seed
):
    n, block = shape
    operands = draw(m, n, k, min(exponent, 2) if of == torch.float16 else exponent, of, seed, vectors)
    scale = torch.tensor([0.01], device=DEVICE) if fixed and dtype in TOP else None
    args = *operands, scale, norm, block, activation, dtype
    check(kernel(*args, arch, save), *args)
    check(reference(GemmNorm.bind(*args, EPS, save)), *args)


@settings(max_examples=30, deadline=None)
@given(
    m=st.sampled_from([0, 1, 5, 40]),
    n=st.sampled_from([1, 100, 256, 520, 1024]),
    k=st.sampled_from([7, 64]),
    exponent=st.integers(-4, 6),
    vectors=st.sampled_from(["", "b", "w", "bw", "bwr"]),
    activation=st.sampled_from(["none", "relu"]),
    of=st.sampled_from([E4M3, torch.bfloat16]),
    fixed=st.booleans(),
    arch=st.sampled_from(ARCHS),
    seed=st.integers(0, 2**31),
)
def test_lazy_norm_by_its_own_definition(m, n, k, exponent, vectors, activation, of, fixed, arch, seed):
    operands = draw(m, n, k, exponent, of, seed, vectors)
    scale = torch.tensor([0.01], device=DEVICE) if fixed else None
    args = *operands, scale, "lazy", 0, activation, E4M3 if fixed else torch.bfloat16
    check(kernel(*args, arch), *args)
    check(reference(GemmNorm.bind(*args, EPS, True)), *args)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("given_scale", [None, 0.05])
def test_a_lazy_norm_and_its_consumer_are_the_exact_norm(arch, given_scale):
    """Rows of 700, too long for a tile, through a second linear: bfloat16 between the two, or FP8 by a given scale."""
    operands = draw(9, 700, 64, 2, E4M3, 3, "bw")
    second = torch.randn(40, 700, device=DEVICE, dtype=torch.bfloat16) / 700**0.5
    fixed = None if given_scale is None else torch.tensor([given_scale * 100], device=DEVICE)
    dtype = torch.bfloat16 if fixed is None else E4M3
    out, _, statistics, _ = kernel(*operands, fixed, "lazy", 0, "relu", dtype, arch)
    rstd = lazy_rstd(statistics, 700, EPS)
    if fixed is None:
        got = kernel(out, rstd, second, None, *[None] * 5, "none", 0, "none", torch.float32, arch)[0]
    else:
        b, b_scale = quantization.reference(second, E4M3, "row", -1)
        got = kernel(out, rstd * fixed, b, b_scale, *[None] * 5, "none", 0, "none", torch.float32, arch)[0]
    normed = oracle(*operands, "rms", 0, "relu")[1]
    expected = normed @ second.double().t()
    noise = (got.double() - expected).norm() / expected.norm()
    assert noise < (0.004 if fixed is None else 0.05)


@pytest.mark.parametrize(
    ("n", "norm", "block", "activation", "vectors", "save"),
    [
        (512, "rms", 0, "relu", "w", True),
        (512, "layer", 0, "relu", "ws", False),
        (192, "layer", 0, "silu", "bws", False),
        (512, "rms", 256, "hard_swish", "", False),
        (192, "layer", 0, "none", "brws", True),
        (512, "rms", 0, "relu", "rw", False),
    ],
)
def test_tiles_that_are_not_swapped(n, norm, block, activation, vectors, save):
    """Enough rows to fill a chip with tiles as wide as a row, the last one not whole; b's rows in the order in which a
    thread holds neighbours (sm_90)."""
    operands = draw(128 * 132 + 5 if n < 512 else 64 * 132 + 5, n, 32, 0, E4M3, 1, vectors)
    args = *operands, None, norm, block, activation, E4M3
    call = GemmNorm.bind(*args, EPS, save)
    assert launches(call, empty_outputs(call), "sm_90")[0].constants["TURN"]
    check(kernel(*args, "sm_90", save), *args)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("one", [False, True])
def test_scales_of_operands(arch, one):
    """b by one scale or by rows; only one operand scaled."""
    a, a_scale, b, b_scale, *rest = draw(20, 64, 32, 0, E4M3, 2, "b")
    b_scale = b_scale.amax().reshape(1) if one else b_scale
    for scales in ((a_scale, b_scale), (None, b_scale), (a_scale, None), (None, None)):
        args = a, scales[0], b, scales[1], *rest, None, "rms", 16, "silu", E5M2
        check(kernel(*args, arch), *args)


def test_both_fp8_formats_in_one_product():
    a, a_scale, *_ = draw(20, 64, 32, 0, E5M2, 2)
    _, _, b, b_scale, *_ = draw(20, 64, 32, 0, E4M3, 2)
    args = a, a_scale, b, b_scale, *[None] * 5, "rms", 0, "relu", E4M3
    check(kernel(*args), *args)
    check(reference(GemmNorm.bind(*args, EPS, True)), *args)
