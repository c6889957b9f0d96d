"""loka::quantize against a float64 oracle that walks the slices one by one."""

from __future__ import annotations

import itertools

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from loka_compile.kernels.quantize.quantize import dequantize, quantize, reference

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SMALLEST = {torch.float8_e4m3fn: 2.0**-9, torch.float8_e5m2: 2.0**-16}  # subnormals
HALF_ULP = {torch.float8_e4m3fn: 2.0**-4, torch.float8_e5m2: 2.0**-3}  # of a normal number, relative

# (dtype, scaling, axis): everything the op defines.
FORMS = [(torch.int8, "row", -1), (torch.int8, "row", -2)] + [
    (dtype, *how)
    for dtype in FP8
    for how in [("tensor", -1), ("row", -1), ("row", -2), ("block", -1), ("block", -2), ("tile", -1)]
]
SIZES = [1, 2, 3, 16, 31, 127, 128, 129, 257]
SHAPES = st.one_of(
    st.tuples(st.sampled_from([0, *SIZES]), st.sampled_from([0, *SIZES])),
    st.tuples(st.sampled_from([0, 1, 2, 3]), st.sampled_from([1, 3, 129]), st.sampled_from([1, 7, 128, 131])),
)
form = pytest.mark.parametrize(("dtype", "scaling", "axis"), FORMS, ids=lambda v: str(v).removeprefix("torch."))


def slices(shape, scaling, axis):
    """(index of the scale, slices of x that it covers) for every scale."""
    *batch, rows, columns = shape
    if scaling == "tensor":
        yield (0,), (...,)
        return
    length = {"row": (rows, columns), "block": (128, 128), "tile": (128, 128)}[scaling]
    row_step = length[0] if axis == -2 or scaling == "tile" else 1
    column_step = length[1] if axis == -1 or scaling == "tile" else 1
    for b in itertools.product(*map(range, batch)):
        for i, r in enumerate(range(0, rows, max(1, row_step))):
            for j, c in enumerate(range(0, columns, max(1, column_step))):
                yield (*b, i, j), (*b, slice(r, r + row_step), slice(c, c + column_step))


def scale_shape(shape, scaling, axis):
    *batch, rows, columns = shape
    blocks = -(-rows // 128), -(-columns // 128)
    return {
        ("tensor", -1): (1,),
        ("row", -1): (*batch, rows, 1),
        ("row", -2): (*batch, 1, columns),
        ("block", -1): (*batch, rows, blocks[1]),
        ("block", -2): (*batch, blocks[0], columns),
        ("tile", -1): (*batch, *blocks),
    }[scaling, axis]


def check_against_oracle(x, q, scale, dtype, scaling, axis):
    """Every scale is its slice's amax over the largest value; every value is the format's nearest one."""
    assert q.dtype == dtype
    assert q.shape == x.shape
    assert scale.dtype == torch.float32
    assert scale.shape == scale_shape(x.shape, scaling, axis)
    if x.numel() == 0:
        return
    x, q, scale = x.double(), q.double(), scale.double()
    expected, each = torch.empty_like(scale), torch.empty_like(x)
    for index, part in slices(x.shape, scaling, axis):
        expected[index] = max(x[part].abs().max().item(), 1e-30 if dtype == torch.int8 else 1e-12) / LARGEST[dtype]
        each[part] = expected[index]
    torch.testing.assert_close(scale, expected, rtol=1e-6, atol=0)
    steps = x / each
    assert (q.abs() <= LARGEST[dtype]).all()
    bound = 0.5 if dtype == torch.int8 else (steps.abs() * HALF_ULP[dtype]).clamp(min=SMALLEST[dtype] / 2)
    assert ((q - steps).abs() <= bound + 1e-6 * steps.abs()).all()  # x / scale is rounded to float32 first


def values(shape, exponent, dtype, seed):
    """Normal values around 10^exponent with rows far apart, some of them zero, kept inside the input's range."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = x * 10.0 ** (exponent + 4 * torch.rand(*shape[:-1], 1, generator=generator, dtype=torch.float64))
    x = x * (torch.rand(*shape[:-1], 1, generator=generator) > 0.2)
    top = torch.finfo(dtype).max
    return x.clamp(-top, top).to(dtype)


@settings(max_examples=150, deadline=None)
@given(
    shape=SHAPES,
    exponent=st.integers(-20, 30),
    form=st.sampled_from(FORMS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31),
)
def test_every_value_is_the_nearest_of_its_format(shape, exponent, form, dtype, seed):
    x = values(shape, min(exponent, 3) if dtype == torch.float16 else exponent, dtype, seed)
    check_against_oracle(x, *quantize(x, *form), *form)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, form=st.sampled_from([f for f in FORMS if f[1] != "tensor"]), seed=st.integers(0, 2**31))
def test_quantizing_the_transpose_transposes_the_quantization(shape, form, seed):
    dtype, scaling, axis = form
    x = values(shape, 0, torch.float32, seed)
    q, scale = quantize(x, dtype, scaling, axis)
    other_q, other_scale = quantize(x.mT, dtype, scaling, -3 - axis)
    assert torch.equal(q.float(), other_q.mT.float())
    assert torch.equal(scale, other_scale.mT)


@form
def test_layout_of_the_input_does_not_matter(dtype, scaling, axis):
    x = torch.randn(3, 130, 140)[:, ::2, 1::2]
    strided, plain = quantize(x, dtype, scaling, axis), quantize(x.contiguous(), dtype, scaling, axis)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(strided, plain, strict=True))


@pytest.mark.parametrize("size", [2.0**-90, 2.0**-40, 2.0**100])
def test_integers_do_not_depend_on_the_size_of_what_they_stand_for(size):
    """Gradients of a mean over many rows lie below 1e-12; only zeros become zeros."""
    x = torch.randn(5, 64)
    forms = [(torch.int8, "row"), (torch.int8, "row7"), (torch.uint8, "affine"), (torch.uint8, "shifted")]
    for dtype, scaling in forms:
        q, scale = quantize(x * size, dtype, scaling, -1)
        other, other_scale = quantize(x, dtype, scaling, -1)
        assert torch.equal(q, other) and torch.equal(scale, other_scale * size)


@form
@pytest.mark.parametrize("shape", [(5, 300), (130, 3), (2, 4, 129)])
def test_zeros_stay_zeros(shape, dtype, scaling, axis):
    q, scale = quantize(torch.zeros(shape), dtype, scaling, axis)
    assert (q.float() == 0).all()
    assert (scale > 0).all()
    x = torch.randn(shape)
    x[..., 1, :] = 0
    x[..., :, 1] = 0
    back = dequantize(*quantize(x, dtype, scaling, axis))
    assert (back[x == 0] == 0).all()


@form
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_never_becomes_an_ordinary_number(dtype, scaling, axis, bad):
    x = torch.randn(2, 130, 140, generator=torch.Generator().manual_seed(0))
    x[1, 3, 4] = bad
    q, scale = quantize(x, dtype, scaling, axis)
    back = dequantize(q, scale)
    harmed = torch.zeros_like(x, dtype=torch.bool)
    if dtype == torch.int8:  # no NaN among its values: the scale of the slice says it
        harmed[(1, 3) if axis == -1 else (1, slice(None), 4)] = True
        assert (~scale.isfinite()).sum() == 1
    else:
        harmed[1, 3, 4] = True
        assert scale.isfinite().all()
    assert torch.equal(~back.isfinite(), harmed)
    clean_q, clean_scale = quantize(x.nan_to_num(0, 0, 0), dtype, scaling, axis)
    assert torch.equal(q.float()[~harmed], clean_q.float()[~harmed])
    assert torch.equal(scale[scale.isfinite()], clean_scale[scale.isfinite()])


@form
def test_only_bad_values(dtype, scaling, axis):
    for bad in (float("nan"), float("inf")):
        assert not dequantize(*quantize(torch.full((3, 5), bad), dtype, scaling, axis)).isfinite().any()


@pytest.mark.parametrize("dtype", FP8)
def test_the_largest_values_do_not_overflow(dtype):
    top = torch.finfo(torch.float32).max
    back = dequantize(*quantize(torch.tensor([[top, -top, 1.0]]), dtype, "tensor", -1))
    torch.testing.assert_close(back, torch.tensor([[top, -top, 0.0]]), rtol=1e-6, atol=0)


@form
def test_dequantize_multiplies_every_slice_by_its_scale(dtype, scaling, axis):
    x = torch.randn(2, 130, 257)
    _, scale = quantize(x, dtype, scaling, axis)
    each = dequantize(torch.ones_like(x), scale)
    for index, part in slices(x.shape, scaling, axis):
        assert (each[part] == scale[index]).all()


@pytest.mark.parametrize("rows", [256, 130])
def test_a_gradient_in_blocks_along_both_axes_compiles(rows):
    """Where scales were repeated for each value, torch 2.13's C++ generator could not split the loops."""

    def both(x, y):
        down, across = (reference(each, torch.float8_e4m3fn, "block", -1) for each in (x, x.mT))
        return dequantize(*down) @ y.mT, dequantize(*across) @ x

    x, y = torch.randn(rows, 384), torch.randn(16, 384)
    for ours, eager in zip(torch.compile(both, dynamic=False)(x, y), both(x, y), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("dtype", "scaling", "axis"), [f for f in FORMS if f[0] != torch.float8_e5m2])
def test_opcheck(dtype, scaling, axis):
    torch.library.opcheck(torch.ops.loka.quantize.default, (torch.randn(3, 131, 5).mT, dtype, scaling, axis))
    for shape in [(0, 7), (7, 0), (0, 7, 3)]:
        args = torch.randn(shape), dtype, scaling, axis
        torch.library.opcheck(torch.ops.loka.quantize.default, args, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("dtype", "scaling", "axis"), [f for f in FORMS if f[0] != torch.float8_e5m2])
@pytest.mark.parametrize("dims", [2, 3])
def test_symbolic_shapes_give_the_same_values(dtype, scaling, axis, dims):
    """One trace with symbolic sizes serves other sizes."""
    function = lambda x: reference(x, dtype, scaling, axis)  # noqa: E731
    traced = make_fx(function, tracing_mode="symbolic")(torch.randn([130 + 3 * i for i in range(dims)]))
    for shape in [(130, 257), (131, 200), (1000, 129)]:
        x = torch.randn((2, *shape) if dims == 3 else shape)
        for got, expected in zip(traced(x), function(x), strict=True):
            assert torch.equal(got.float(), expected.float())


@pytest.mark.parametrize(("dtype", "scaling", "axis"), [f for f in FORMS if f[0] != torch.float8_e5m2])
def test_a_symbolic_number_of_rows_is_not_split_by_multiples_of_128(dtype, scaling, axis):
    """A dynamic batch: the trace's guards hold for every size above one block."""
    traced = make_fx(lambda x: reference(x, dtype, scaling, axis), tracing_mode="symbolic")(torch.randn(130, 133))
    rows = traced.graph.find_nodes(op="placeholder")[0].meta["val"].shape[0].node.expr
    for guard in traced.shape_env.guards:
        for size in (131, 256, 257, 384, 1000):
            assert guard.expr.subs(rows, size) is not sympy.false


@pytest.mark.parametrize(
    ("x", "dtype", "scaling", "axis", "message"),
    [
        (torch.ones(2, 2), torch.int32, "row", -1, "dtype must be one of .*int32"),
        (torch.ones(2, 2), torch.int8, "rows", -1, "scaling must be .* got 'rows'"),
        (torch.ones(2, 2), torch.int8, "row", 1, "axis must be -1 or -2, got 1"),
        (torch.ones(2, 2), torch.int8, "tensor", -1, "must be scaled by row"),
        (torch.ones(2, 2), torch.int8, "block", -1, "must be scaled by row"),
        (torch.ones(3), torch.float8_e4m3fn, "block", -1, "at least two dimensions, got torch.float32 with 1"),
        (torch.ones(2, 2, dtype=torch.int64), torch.int8, "row", -1, "must be floating point .*int64"),
        (torch.ones(2, 2, dtype=torch.complex64), torch.int8, "row", -1, "must be floating point .*complex64"),
    ],
)
def test_bad_arguments(x, dtype, scaling, axis, message):
    with pytest.raises(ValueError, match=message):
        reference(x, dtype, scaling, axis)
    with pytest.raises(ValueError, match=message):
        quantize(x, dtype, scaling, axis)
