"""loka::scaled_gemm: the reference against float64, PyTorch's kernels against the reference."""

from __future__ import annotations

import pytest
import torch

from loka_compile.kernels.gemm.product import reference
from loka_compile.kernels.gemm.scaled_gemm import scaled_gemm
from loka_compile.kernels.providers import PROVIDERS
from loka_compile.kernels.quantize.quantize import quantize

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
SHAPES = [(1, 1, 1), (5, 7, 3), (1, 64, 32), (33, 127, 17), (64, 128, 48), (257, 130, 129)]

aten = PROVIDERS["aten"].product

# recipe -> how each operand is quantized: (dtype, scaling), "none" being a plain cast.
EIGHT_BIT = {
    "int8_rowwise": ((torch.int8, "row"), (torch.int8, "row")),
    "fp8_tensorwise": ((E4M3, "tensor"), (E4M3, "tensor")),
    "fp8_tensorwise, gradient left": ((E5M2, "tensor"), (E4M3, "tensor")),
    "fp8_tensorwise, gradient right": ((E4M3, "tensor"), (E5M2, "tensor")),
    "fp8_rowwise": ((E4M3, "row"), (E4M3, "row")),
}
SIXTEEN_BIT = {name: ((dtype, "none"),) * 2 for name, dtype in [("bf16", torch.bfloat16), ("fp16", torch.float16)]}
BLOCK = {"fp8_blockwise": ((E4M3, "block"), (E4M3, "tile"))}
ALL = EIGHT_BIT | SIXTEEN_BIT | BLOCK


def operands(recipe, m, k, n, batch=()):
    """Rows and columns up to 100 apart, so that a scale taken from the wrong place shows."""
    left, right = ALL[recipe]
    generator = torch.Generator().manual_seed(m * k * n)
    x = torch.randn(*batch, m, k, generator=generator) * torch.logspace(-1, 1, m)[:, None]
    w = torch.randn(*batch, k, n, generator=generator) * torch.logspace(-1, 1, n)
    return [*_few_bits(x, *left, -1), *_few_bits(w, *right, -2)]


def _few_bits(x, dtype, scaling, axis):
    return (x.to(dtype), None) if scaling == "none" else quantize(x, dtype, scaling, axis)


def exact(q, scale):
    """The operand in float64, its scales spread over their blocks by index arithmetic."""
    if scale is None or scale.dim() == 1:
        return q.double() * (1.0 if scale is None else scale.double())
    steps = [1 if s == d else d if s == 1 else 128 for s, d in zip(scale.shape[-2:], q.shape[-2:], strict=True)]
    rows, columns = (torch.arange(d) // step for d, step in zip(q.shape[-2:], steps, strict=True))
    return q.double() * scale.double()[..., rows[:, None], columns]


def oracle(a, a_scale, b, b_scale):
    """The product in float64, and the sum of its terms' magnitudes, which bounds any float32 summation's error."""
    left, right = exact(a, a_scale), exact(b, b_scale)
    return left @ right, left.abs() @ right.abs()


def assert_product(out, a, a_scale, b, b_scale, eps=2.0**-22):
    expected, magnitude = oracle(a, a_scale, b, b_scale)
    rounding = torch.finfo(out.dtype).eps * expected.abs() + torch.finfo(out.dtype).smallest_normal
    assert ((out.double() - expected).abs() <= eps * (8 + a.shape[-1]) * magnitude + rounding).all()


@pytest.mark.parametrize("recipe", ALL)
@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_the_product_of_the_dequantized(recipe, shape):
    args = operands(recipe, *shape)
    out = reference(*args, torch.float32)
    assert out.dtype == torch.float32
    assert_product(out, *args)


@pytest.mark.parametrize("recipe", SIXTEEN_BIT | BLOCK | {"fp8_rowwise": 0, "int8_rowwise": 0, "fp8_tensorwise": 0})
def test_reference_in_batches(recipe):
    args = operands(recipe, 5, 130, 7, batch=(3,))
    assert_product(reference(*args, torch.float32), *args)


@pytest.mark.parametrize("recipe", EIGHT_BIT)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_aten_is_the_reference(recipe, shape, out_dtype):
    args = operands(recipe, *shape)
    out = aten(*args, out_dtype)
    assert out.dtype == out_dtype
    assert out.shape == (shape[0], shape[2])
    assert_product(out, *args)


@pytest.mark.parametrize("recipe", SIXTEEN_BIT)
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("shape", SHAPES)
def test_aten_in_16_bit_rounds_its_output_only(recipe, shape, batch):
    """`_mm` sums in float32 and writes 16 bits: one more rounding, of the output."""
    args = operands(recipe, *shape, batch=batch)
    out = aten(*args, torch.float32)
    assert out.dtype == torch.float32
    assert_product(out.to(args[0].dtype), *args)


@pytest.mark.parametrize("recipe", [*EIGHT_BIT, *SIXTEEN_BIT])
@pytest.mark.parametrize("shape", [(0, 64, 32), (1, 64, 32), (0, 7, 3), (5, 0, 3), (5, 7, 0)])
def test_sizes_nothing_and_one(recipe, shape):
    m, k, n = shape
    left, right = ALL[recipe]
    args = [*_few_bits(torch.randn(m, k), *left, -1), *_few_bits(torch.randn(k, n), *right, -2)]
    for implementation in (aten, reference):
        out = implementation(*args, torch.float32)
        assert out.shape == (m, n)
        assert_product(out, *args, eps=2.0**-7 if recipe in SIXTEEN_BIT else 2.0**-22)


@pytest.mark.parametrize("recipe", EIGHT_BIT)
@pytest.mark.parametrize("flip_a", [False, True])
@pytest.mark.parametrize("flip_b", [False, True])
def test_layouts_of_operands_and_scales(recipe, flip_a, flip_b):
    """Transposed operands (a quantize shared with another GEMM) and scales that are slices of something."""
    a, a_scale, b, b_scale = operands(recipe, 33, 64, 48)
    expected = aten(a, a_scale, b, b_scale, torch.float32)
    a = a.t().contiguous().t() if flip_a else a
    b = b.t().contiguous().t() if flip_b else b
    a_scale, b_scale = (scale.repeat_interleave(2, dim=-1)[..., ::2] for scale in (a_scale, b_scale))
    a_scale = a_scale.repeat_interleave(3, dim=0)[::3]
    torch.testing.assert_close(aten(a, a_scale, b, b_scale, torch.float32), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(5, 7, 3), (64, 128, 48), (17, 4099, 31)])
def test_int8_is_exact_in_integers(shape):
    m, k, n = shape
    a, b = (torch.randint(-127, 128, s, dtype=torch.int8) for s in ((m, k), (k, n)))
    powers = lambda *s: torch.exp2(torch.randint(-9, 9, s))  # noqa: E731 (multiplying by them is exact)
    a_scale, b_scale = powers(m, 1), powers(1, n)
    expected = ((a.long() @ b.long()).float() * a_scale * b_scale).float()
    assert torch.equal(aten(a, a_scale, b, b_scale, torch.float32), expected)


def test_int8_at_the_longest_contraction_does_not_overflow():
    k = (2**31 - 1) // 127**2
    a, b = torch.full((1, k), 127, dtype=torch.int8), torch.full((k, 1), -127, dtype=torch.int8)
    assert aten(a, torch.ones(1, 1), b, torch.ones(1, 1), torch.float64).item() == pytest.approx(-k * 127**2, rel=1e-7)


@pytest.mark.parametrize("recipe", EIGHT_BIT)
@pytest.mark.parametrize("provider", ["aten", "emulated"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_the_output(recipe, provider, bad):
    """A row of the left operand and a column of the right one hold a bad value: NaN there and nowhere else."""
    left, right = ALL[recipe]
    x, w = torch.randn(6, 32), torch.randn(32, 5)
    x[2, 3], w[4, 1] = bad, bad
    out = scaled_gemm(*_few_bits(x, *left, -1), *_few_bits(w, *right, -2), torch.float32, provider)
    expected = torch.zeros(6, 5, dtype=torch.bool)
    expected[2], expected[:, 1] = True, True
    assert torch.equal(out.isnan(), expected)


@pytest.mark.parametrize("recipe", ALL)
@pytest.mark.parametrize("provider", ["aten", "emulated"])
def test_opcheck(recipe, provider):
    if recipe in BLOCK and provider == "aten":
        pytest.skip("no such kernel: the provider refuses it")
    op = torch.ops.loka.scaled_gemm.default
    args = [*operands(recipe, 5, 130, 7), torch.bfloat16, provider]
    utils = ["test_faketensor"]
    if args[0].dtype.itemsize > 1 or args[0].dtype == torch.int8:  # opcheck cannot compare float8 tensors
        utils += ["test_schema", "test_aot_dispatch_dynamic"]
    torch.library.opcheck(op, tuple(args), test_utils=utils)
    if recipe in SIXTEEN_BIT or provider == "emulated":
        torch.library.opcheck(
            op, (*operands(recipe, 5, 16, 7, batch=(2,)), torch.float32, provider), test_utils=["test_faketensor"]
        )
