"""loka::triton_gemm: the Triton kernels (interpreted where there is no GPU) and their reference, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton.tools.tensor_descriptor import TensorDescriptor

from loka_compile.kernels.gemm import scaled_gemm as plain
from loka_compile.kernels.gemm.triton_gemm import reference, triton_gemm
from loka_compile.kernels.gemm.triton_gemm_launch import launches, prepared
from loka_compile.kernels.launch import arch_of
from loka_compile.kernels.norms import ACTIVATIONS
from loka_compile.kernels.quantize.quantize import dequantize, quantize

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
HALF_ULP = {BF16: 2.0**-8, FP16: 2.0**-11, FP32: 2.0**-24}
SMALLEST = {BF16: 0.0, FP16: 2.0**-24, FP32: 0.0}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# recipe -> (dtype, scaling) of each operand; "none" is a plain cast
RECIPES = {
    "tensor": ((E4M3, "tensor"), (E4M3, "tensor")),
    "row": ((E4M3, "row"), (E4M3, "row")),
    "block": ((E4M3, "block"), (E4M3, "tile")),
    "row, tensor": ((E4M3, "row"), (E4M3, "tensor")),
    "tensor, row": ((E5M2, "tensor"), (E4M3, "row")),
    "gradient left": ((E5M2, "tensor"), (E4M3, "tensor")),
    "gradient right": ((E4M3, "tensor"), (E5M2, "tensor")),
    "bf16": ((BF16, "none"), (BF16, "none")),
    "fp16": ((FP16, "none"), (FP16, "none")),
}
SIZES = [1, 7, 16, 37, 64, 131, 160]


def kernel(a, a_scale, b, b_scale, bias=None, activation="none", out_dtype=FP32, deterministic=True, arch="sm_90"):
    """What the op does with tensors on a GPU.

    Triton 3.7's interpreter multiplies bfloat16 wrongly, rounds wrongly to it and knows no NaN of FP8: there operands
    and output are float32 where they would be 16 bits, FP8 with a NaN too, and torch converts.
    """
    out = torch.full((*a.shape[:-1], b.shape[-1]), float("nan"), dtype=out_dtype, device=a.device)
    a, b = prepared(a, b)
    made = launches(a, a_scale, b, b_scale, bias, out, activation, deterministic, arch_of(a) if a.is_cuda else arch)
    results, harmed = {}, bool(a.float().isnan().any() or b.float().isnan().any())

    def widened(value):
        base = getattr(value, "base", value)
        if not torch.is_tensor(base) or a.is_cuda or not base.is_floating_point():
            return value
        if base.dtype not in (BF16, FP16) and not (base.dtype in (E4M3, E5M2) and harmed):
            return value
        wide = results.setdefault(base.data_ptr(), base.float())
        return wide if base is value else TensorDescriptor.from_tensor(wide, value.block_shape)

    if made[0].constants["ATOMIC"]:
        out.zero_()
    for each in made:
        replace(each, args={name: widened(value) for name, value in each.args.items()}).run()
    return results[out.data_ptr()].reshape(out.shape).to(out_dtype) if out.data_ptr() in results else out


def operands(recipe, m, n, k, batch=(), seed=0, exponent=0):
    """Rows and columns up to 100 apart, so that a scale from the wrong place shows; b lies as a linear's weight."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, m, k, generator=generator) * torch.logspace(-1, 1, m)[:, None] * 10.0**exponent
    w = torch.randn(*batch, n, k, generator=generator) * torch.logspace(-1, 1, n)[:, None]
    (dtype, kind), (other, other_kind) = RECIPES[recipe]
    x, w = x.to(DEVICE), w.to(DEVICE)
    left = (x.to(dtype), None) if kind == "none" else quantize(x, dtype, kind, -1)
    q, scale = (w.to(other), None) if other_kind == "none" else quantize(w, other, other_kind, -1)
    return [*left, q.mT, scale if scale is None or scale.dim() == 1 else scale.mT]


def check(out, a, a_scale, b, b_scale, bias=None, activation="none", out_dtype=FP32):
    """The nearest value of the format to the oracle's, but for what float32 sums lose."""
    left = a.double() if a_scale is None else a.double() * _spread(a_scale, a)
    right = b.double() if b_scale is None else b.double() * _spread(b_scale, b)
    p, size = left @ right, left.abs() @ right.abs()
    if bias is not None:
        p, size = p + bias.double(), size + bias.double().abs()
    y = {
        "none": p,
        "relu": p * (p > 0),
        "silu": p / (1 + torch.exp(-p)),
        "hard_swish": p * (p + 3).clamp(0, 6) / 6,
        "gelu": p * torch.special.ndtr(p),
    }[activation]
    assert (out.dtype, out.shape) == (out_dtype, y.shape)
    lost = 2.0**-22 * (8 + a.shape[-1] ** 0.5) * size * (1.2 if activation == "none" else 2.0)
    rounding = 1.001 * HALF_ULP[out_dtype] * y.abs() + SMALLEST[out_dtype] + 1e-37
    assert ((out.double() - y).abs() <= lost + rounding).all()


def _spread(scale, like):
    """A scale for every value, by index."""
    if scale.dim() == 1:
        return scale.double()
    sizes = zip(scale.shape[-2:], like.shape[-2:], strict=True)
    rows, columns = (torch.arange(size) // (1 if have == size else 128 if have > 1 else size) for have, size in sizes)
    rows, columns = (each.clamp(max=have - 1) for each, have in zip((rows, columns), scale.shape[-2:], strict=True))
    return scale.double()[..., rows[:, None], columns]


@settings(max_examples=50, deadline=None)
@given(
    m=st.sampled_from([0, *SIZES]),
    n=st.sampled_from([0, *SIZES]),
    k=st.sampled_from([1, 16, 48, 131, 257]),
    recipe=st.sampled_from(list(RECIPES)),
    batch=st.sampled_from([(), (1,), (3,)]),
    biased=st.booleans(),
    activation=st.sampled_from(ACTIVATIONS),
    out_dtype=st.sampled_from([BF16, FP16, FP32]),
    arch=st.sampled_from(["sm_90", "gfx942"]),
    seed=st.integers(0, 2**31),
)
def test_kernel_and_reference_against_float64(m, n, k, recipe, batch, biased, activation, out_dtype, arch, seed):
    args = operands(recipe, m, n, k, batch, seed)
    bias = torch.linspace(-2, 2, n, device=DEVICE) if biased else None
    check(kernel(*args, bias, activation, out_dtype, arch=arch), *args, bias, activation, out_dtype)
    check(reference(*args, bias, activation, out_dtype), *args, bias, activation, out_dtype)


@pytest.mark.parametrize("exponent", [-18, -6, 12])
@pytest.mark.parametrize("recipe", ["tensor", "row", "block", "bf16"])
def test_huge_and_tiny_scales(exponent, recipe):
    args = operands(recipe, 33, 48, 200, exponent=exponent)
    check(kernel(*args), *args)


@pytest.mark.parametrize("recipe", ["row", "block", "bf16"])
@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_long_contractions_in_parts(recipe, arch, deterministic, batch):
    args = operands(recipe, 48, 32, 4096 + 160, batch)
    whole = (args[0], *args[1:])
    made = launches(
        *prepared(args[0], args[2])[:1],
        args[1],
        prepared(args[0], args[2])[1],
        args[3],
        None,
        torch.empty(*batch, 48, 32, device=DEVICE),
        "none",
        deterministic,
        arch,
    )
    assert made[0].constants["SPLITS"] > 1 and len(made) == 1 + deterministic
    check(kernel(*args, deterministic=deterministic, arch=arch), *whole)
    bias = torch.linspace(-1, 1, 32, device=DEVICE)
    out = kernel(*args, bias, "silu", BF16, deterministic=deterministic, arch=arch)  # no atomics: there is more to do
    check(out, *args, bias, "silu", BF16)


@pytest.mark.parametrize("recipe", ["row", "bf16"])
def test_deterministic_sums_have_the_same_bits_every_time(recipe):
    args = operands(recipe, 64, 64, 8192)
    first, second = kernel(*args), kernel(*args)
    assert torch.equal(first, second)


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
@pytest.mark.parametrize(("flip_a", "flip_b"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("recipe", ["row", "bf16"])
def test_operands_that_lie_the_other_way(arch, flip_a, flip_b, recipe):
    """A gradient's products transpose activations and weights; 16 bits are turned in the kernel, FP8 is copied."""
    a, a_scale, b, b_scale = operands(recipe, 64, 48, 80)
    a = a.mT.contiguous().mT if flip_a else a
    b = b.contiguous() if flip_b else b
    turned = [each.is_contiguous() for each in prepared(a, b)]
    assert turned == ([not flip_a, flip_b] if recipe == "bf16" else [True, False])
    check(kernel(a, a_scale, b, b_scale, arch=arch), a, a_scale, b, b_scale)


def test_rows_that_no_descriptor_can_point_to():
    """Bases and rows off a multiple of 16 bytes go without TMA."""
    a, a_scale, b, b_scale = operands("row", 20, 16, 64)
    moved = torch.empty(a.numel() + 1, dtype=E4M3, device=DEVICE)[1:].view(a.shape)
    moved.copy_(a)
    for left, right in ((moved, b), (a[:, :40], b[:40])):
        check(kernel(left, a_scale, right, b_scale), left, a_scale, right, b_scale)
        a3, b3 = prepared(left, right)
        out = torch.empty(20, 16, device=DEVICE)
        (made,) = launches(a3, a_scale, b3, b_scale, None, out, "none", True, "sm_90")
        assert not made.constants["TMA"] and made.constants["TMA_OUT"]


@pytest.mark.parametrize("recipe", ["tensor", "row", "block"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(recipe, bad):
    x, w = torch.randn(20, 160), torch.randn(48, 160)
    x[3, 5] = bad
    (dtype, kind), (other, other_kind) = RECIPES[recipe]
    (a, a_scale), (q, scale) = quantize(x.to(DEVICE), dtype, kind, -1), quantize(w.to(DEVICE), other, other_kind, -1)
    out = kernel(a, a_scale, q.mT, scale if scale.dim() == 1 else scale.mT)
    assert out[3].isnan().all() and out[[i for i in range(20) if i != 3]].isfinite().all()


def test_zero_rows_give_zeros():
    x = torch.zeros(17, 64, device=DEVICE)
    for kind, other in (("tensor", "tensor"), ("row", "row"), ("block", "tile")):
        b, b_scale = quantize(torch.zeros(32, 64, device=DEVICE), E4M3, other, -1)
        out = kernel(*quantize(x, E4M3, kind, -1), b.mT, b_scale if b_scale.dim() == 1 else b_scale.mT)
        assert (out == 0).all()


def test_nothing_to_add_gives_the_bias():
    bias = torch.linspace(-1, 1, 16, device=DEVICE)
    a, b = torch.empty(5, 0, dtype=BF16, device=DEVICE), torch.empty(0, 16, dtype=BF16, device=DEVICE)
    assert torch.equal(kernel(a, None, b, None, bias, "relu"), bias.relu().expand(5, 16))


@pytest.mark.parametrize("recipe", ["row", "block", "bf16"])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_opcheck(recipe, batch):
    args = operands(recipe, 32, 48, 64, batch)
    utils = ["test_faketensor"]
    if recipe == "bf16":  # opcheck cannot compare float8 tensors
        utils += ["test_schema", "test_aot_dispatch_dynamic"]
    op = torch.ops.loka.triton_gemm.default
    torch.library.opcheck(op, (*args, None, "relu", BF16, True), test_utils=utils)


@pytest.mark.parametrize("recipe", ["tensor", "row", "block", "bf16"])
def test_scaled_gemm_by_the_provider_triton(recipe):
    args = operands(recipe, 32, 48, 160)
    out = plain.scaled_gemm(*args, BF16, "triton")
    left, right = (x.float() if s is None else dequantize(x, s) for x, s in (args[:2], args[2:]))
    torch.testing.assert_close(out.float(), left @ right, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.ones(4, 31).to(E4M3)}, r"a must be \(M, K\) and b \(K, N\), .* got \(4, 31\) and \(32, 16\)"),
        ({"a": torch.ones(1, 4, 32).to(E4M3)}, "or batches of them"),
        ({"a": torch.ones(4, 32)}, "both FP8 or of one 16-bit float dtype, got torch.float32"),
        ({"a": torch.ones(4, 32).to(BF16)}, "got torch.bfloat16 and torch.float8_e4m3fn"),
        ({"a_scale": torch.ones(4)}, r"scales must be one.*got \(4,\)"),
        ({"a_scale": torch.ones(4, 2)}, r"scales must be one.*got \(4, 2\)"),
        ({"bias": torch.ones(4)}, r"bias must have shape \(16,\), got \(4,\)"),
        ({"activation": "swish"}, "activation must be one of .*got 'swish'"),
        ({"out_dtype": torch.int8}, "out must be .*got torch.int8"),
    ],
)
def test_bad_arguments(change, message):
    args = {"a": torch.ones(4, 32).to(E4M3), "a_scale": torch.ones(4, 1), "b": torch.ones(32, 16).to(E4M3)}
    args |= {"b_scale": torch.ones(1, 16), "bias": None, "activation": "none", "out_dtype": BF16} | change
    with pytest.raises(ValueError, match=message):
        triton_gemm(*args.values(), True)
