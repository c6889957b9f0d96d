"""loka::triton_quantize: the Triton kernels (interpreted where there is no GPU) and reference, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.kernels.launch import arch_of
from loka_compile.kernels.quantize import quantize as quantization
from loka_compile.kernels.quantize.triton_quantize import empty_outputs, launches, reference, specimens, triton_quantize

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
HALF_ULP = {E4M3: 2.0**-4, E5M2: 2.0**-3}
SMALLEST = {E4M3: 2.0**-9, E5M2: 2.0**-16}
TOP = {E4M3: 448.0, E5M2: 57344.0, torch.int8: 127.0}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [1, 16, 37, 128, 131, 160, 256]


def kernel(x, dtype, scaling, both, arch="sm_90"):
    """What the op does with tensors on a GPU. Triton's interpreter rounds wrongly to FP8: there torch does."""
    outputs = empty_outputs(x, dtype, scaling, both)
    q, scale, t, t_scale = outputs
    wide = [torch.full_like(each, 7.0, dtype=torch.float32) for each in (q, t)] if dtype.is_floating_point else [q, t]
    for each in launches(x, *outputs, scaling, both, arch_of(x) if x.is_cuda else arch):
        swapped = {"q": wide[0], "out": wide[0], "t": wide[1].mT if both else None}
        if x.is_cuda or not dtype.is_floating_point:
            swapped = {}
        each = replace(each, args={name: swapped.get(name, value) for name, value in each.args.items()})
        each.run()
    return (q, scale, t, t_scale) if x.is_cuda else (wide[0].to(dtype), scale, wide[1].to(dtype), t_scale)


def check(got, x, dtype, scaling, axis):
    """Against every slice's own amax in float64."""
    q, scale = got
    wide, finite = x.double(), x.isfinite()
    size = torch.where(finite, wide.abs(), 0.0)
    amax = torch.empty_like(size)
    along = {-1: (1, 128), -2: (128, 1)}[axis]
    down, across = {"tile": (128, 128), "block": along}.get(scaling, (x.shape[-2], x.shape[-1]))
    for rows in torch.arange(x.shape[-2]).split(down):
        for columns in torch.arange(x.shape[-1]).split(across):
            part = size[..., rows[:, None], columns]
            amax[..., rows[:, None], columns] = part.amax((-2, -1), keepdim=True).expand_as(part)
    if scaling == "tensor":
        amax = size.amax().expand_as(size)
    if scaling == "row":
        amax = size.amax(axis, keepdim=True).expand_as(size)
    steps = amax.clamp(min=1e-30 if dtype == torch.int8 else 1e-12) / TOP[dtype]
    spread = quantization.dequantize(torch.ones_like(wide), scale).double()
    torch.testing.assert_close(spread, steps, rtol=1e-6, atol=0)
    rounding = 0.5 * steps if dtype == torch.int8 else wide.abs() * HALF_ULP[dtype] + SMALLEST[dtype] / 2 * steps
    error = (q.double() * spread - wide).abs()
    assert (error <= 1.001 * rounding + 3e-7 * amax)[finite].all()
    assert q.double().isnan()[~finite].all()


def draw(shape, exponent, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * torch.logspace(-2, 2, shape[-1]) * 10.0**exponent
    return (x * (torch.rand(*shape[:-1], 1, generator=generator) > 0.2)).to(DEVICE, dtype)


KINDS = [
    (E4M3, "tensor"),
    (E4M3, "row"),
    (E4M3, "block"),
    (E4M3, "tile"),
    (E5M2, "tensor"),
    (E5M2, "tile"),
    (torch.int8, "row"),
]


@settings(max_examples=50, deadline=None)
@given(
    rows=st.sampled_from(SIZES),
    columns=st.sampled_from(SIZES),
    batch=st.sampled_from([(), (2,)]),
    kind=st.sampled_from(KINDS),
    both=st.booleans(),
    exponent=st.integers(-20, 20),
    of=st.sampled_from([torch.float32, torch.bfloat16]),
    arch=st.sampled_from(["sm_90", "gfx942"]),
    seed=st.integers(0, 2**31),
)
def test_kernel_and_reference_against_float64(rows, columns, batch, kind, both, exponent, of, arch, seed):
    dtype, scaling = kind
    x = draw((*batch, rows, columns), exponent, of, seed)
    for q, scale, t, t_scale in (kernel(x, dtype, scaling, both, arch), reference(x, dtype, scaling, both)):
        check((q, scale), x, dtype, scaling, -1)
        if both:
            assert t.mT.is_contiguous()
            check((t, t_scale if scaling in ("row", "block") else scale), x, dtype, scaling, -2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("dtype", "scaling"), KINDS)
def test_what_is_not_finite_never_becomes_an_ordinary_number(bad, dtype, scaling):
    x = torch.randn(140, 150, device=DEVICE)
    x[3, 5] = bad
    got, expected = kernel(x, dtype, scaling, True), reference(x, dtype, scaling, True)
    if dtype == torch.int8:
        assert not got[1][3].isfinite().any() and got[1].isfinite().sum() == 139
        assert not got[3][:, 5].isfinite().any() and got[3].isfinite().sum() == 149
        return
    for each in (0, 2):
        harmed = got[each].float().isnan()
        assert harmed[3, 5] and harmed.sum() == 1
        torch.testing.assert_close(got[each].float(), expected[each].float(), rtol=0.26, atol=0.1, equal_nan=True)
    for each in (1, 3):
        torch.testing.assert_close(got[each], expected[each], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("dtype", "scaling"), KINDS)
def test_zeros_give_zeros(dtype, scaling):
    for run in (kernel, reference):
        q, scale, t, t_scale = run(torch.zeros(20, 130, device=DEVICE), dtype, scaling, True)
        assert (q.float() == 0).all() and (t.float() == 0).all()
        assert (scale > 0).all() and scale.isfinite().all() and t_scale.isfinite().all()


@pytest.mark.parametrize(("dtype", "scaling"), KINDS)
def test_the_same_bits_every_time(dtype, scaling):
    x = draw((150, 140), 0, torch.bfloat16, 5)
    for a, b in zip(kernel(x, dtype, scaling, True), kernel(x, dtype, scaling, True), strict=True):
        assert torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("shape", [(0, 16), (16, 0), (2, 0, 3)])
def test_nothing_is_quantized_to_nothing(shape):
    q, scale, t, _ = triton_quantize(torch.empty(shape, device=DEVICE), E4M3, "tensor", True)
    assert q.shape == t.shape == shape and scale.tolist() == [1.0]


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("dtype", "scaling"), KINDS)
def test_opcheck(dtype, scaling, both):
    x = draw((2, 20, 48), 0, torch.float32, 8).transpose(0, 1)
    utils = ["test_faketensor"]  # opcheck cannot compare float8 tensors
    utils += ["test_schema", "test_aot_dispatch_dynamic"] if dtype == torch.int8 else []
    op = torch.ops.loka.triton_quantize.default
    torch.library.opcheck(op, (x, dtype, scaling, both), test_utils=utils)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.ones(3), E4M3, "tile"), r"x must be matrices of floats, got torch.float32 of shape \(3,\)"),
        ((torch.ones(3, 3).int(), E4M3, "tile"), "got torch.int32"),
        ((torch.ones(3, 3), E4M3, "affine"), "scaling must be tensor, row, block or tile, got 'affine'"),
        ((torch.ones(3, 3), torch.int8, "tile"), "or int8 scaled by row, got torch.int8 by tile"),
    ],
)
def test_bad_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        triton_quantize(*args, False)


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_specimens_are_launches_on_no_memory(arch):
    listed = specimens(arch)
    assert len({each.name for each in listed}) == len(listed)
    for each in listed:
        tensors = [value for value in each.launch.args.values() if torch.is_tensor(value)]
        assert all(value.is_meta for value in tensors)
        assert each.launch.nbytes == sum(value.numel() * value.element_size() for value in tensors)
