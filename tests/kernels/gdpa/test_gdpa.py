"""loka::gdpa: the reference against float64 arithmetic written out, sequence by sequence and head by head."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import loka_compile as loka
from loka_compile.kernels.gdpa import gdpa_backward as backward
from loka_compile.kernels.gdpa import gdpa_kernel as forward
from loka_compile.kernels.gdpa import gdpa_reference
from loka_compile.kernels.gdpa.gdpa_reference import ACTIVATIONS, LEAK
from loka_compile.kernels.launch import arch_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMULAS = {
    "gelu": lambda s: s * torch.special.ndtr(s),
    "gelu_approx": lambda s: s * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (s + 0.044715 * s**3)),
    "relu": lambda s: s * (s > 0),
    "relu_squared": lambda s: s * s * (s > 0),
    "leaky_relu": lambda s: s * torch.where(s > 0, 1.0, LEAK),
    "silu": lambda s: s / (1 + torch.exp(-s)),
    "hard_swish": lambda s: s * (s + 3).clamp(0, 6) / 6,
    "identity": lambda s: s,
}


def sequences(x, cu_seqlens):
    """(H, T, D) of each sequence in float64."""
    if cu_seqlens is None:
        return list(x.double())
    ends = cu_seqlens.tolist()
    return [x[a:b].double().transpose(0, 1) for a, b in pairwise(ends)]


def oracle(q, k, v, cu_q, cu_k, activation, scale, inside, window):
    """In float64, and how large the products summed up are: what rounding is measured by. Below a dtype's normal
    numbers rounding is by steps as large as at the smallest of them."""
    outs, sizes, least = [], [], torch.finfo(q.dtype).smallest_normal
    for a, b, c in zip(*(sequences(*each) for each in ((q, cu_q), (k, cu_k), (v, cu_k))), strict=True):
        scores = a @ b.mT * (scale if inside else 1.0)
        if window is not None:
            i, j = torch.arange(a.shape[1], device=q.device), torch.arange(b.shape[1], device=q.device)
            scores = scores * ((i[:, None] - j[None, :]).abs() <= window)
        p = FORMULAS[activation](scores) * (1.0 if inside else scale)
        outs.append(p @ c)
        sizes.append((p.abs().clamp(min=least) + abs(scale) * a.abs() @ b.abs().mT) @ c.abs())
    join = torch.stack if cu_q is None else lambda parts: torch.cat([each.transpose(0, 1) for each in parts])
    return join(outs), join(sizes).clamp(min=least)


def offsets(lengths, dtype=torch.int32):
    return torch.tensor([0, *lengths]).cumsum(0).to(DEVICE, dtype)


def draw(lengths_q, lengths_k, heads, width, dtype, seed, jagged):
    """q, k, v, cu_q, cu_k; jagged is a pair. Of what is dense all lengths are the first one."""
    generator = torch.Generator().manual_seed(seed)

    def make(lengths, is_jagged):
        shape = (sum(lengths), heads, width) if is_jagged else (len(lengths), heads, lengths[0], width)
        return (torch.randn(shape, generator=generator) / width**0.25).to(DEVICE, dtype)

    q, k, v = make(lengths_q, jagged[0]), make(lengths_k, jagged[1]), make(lengths_k, jagged[1])
    return q, k, v, *(offsets(n) if yes else None for n, yes in zip((lengths_q, lengths_k), jagged, strict=True))


def kernel(q, k, v, cu_q, cu_k, activation, scale, inside, window, grad=None):
    """What the op does with tensors on a GPU: out, or with a gradient (dq, dk, dv).

    Triton 3.7's interpreter multiplies and rounds bfloat16 wrongly: there the same values go through it in float32.
    """
    longest = [x.shape[-2] if cu is None else int(cu.diff().max()) for x, cu in ((q, cu_q), (k, cu_k))]
    dtype, arch = q.dtype, arch_of(q) if q.is_cuda else "sm_90"
    if not q.is_cuda and dtype == torch.bfloat16:
        q, k, v, grad = (None if each is None else each.float() for each in (q, k, v, grad))
    rest = cu_q, cu_k, *longest, activation, scale, inside, -1 if window is None else window, arch
    if grad is None:
        out = torch.full_like(q, 99)
        forward.launch(q, k, v, out, *rest).run()
        return out.to(dtype)
    grads = [torch.full_like(each, 99) for each in (q, k, v)]
    for launch in backward.launches(grad, q, k, v, *grads, *rest):
        launch.run()
    return [each.to(dtype) for each in grads]


def lengths(batch, most=70):
    each = st.one_of(st.sampled_from([0, 1, 2, 17, 64]), st.integers(0, most))
    return st.lists(each, min_size=batch, max_size=batch)


@st.composite
def cases(draw_from, most=70):
    batch = draw_from(st.integers(1, 4))
    return {
        "lengths_q": draw_from(lengths(batch, most)),
        "lengths_k": draw_from(lengths(batch, most)),
        "jagged": draw_from(st.tuples(st.booleans(), st.booleans())),
        "heads": draw_from(st.integers(1, 3)),
        "width": draw_from(st.sampled_from([1, 7, 16, 33])),
        "seed": draw_from(st.integers(0, 2**31)),
    }, {
        "activation": draw_from(st.sampled_from(list(ACTIVATIONS))),
        "scale": draw_from(st.sampled_from([1.0, 1 / 37, -0.5])),
        "inside": draw_from(st.booleans()),
        "window": draw_from(st.one_of(st.none(), st.integers(0, 80))),
    }


def public(q, k, v, cu_q, cu_k, activation, scale, inside, window, **more):
    options = {"activation": activation, "scale": scale, "scale_inside": inside, "window": window}
    return loka.gdpa(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, **options, **more)


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_reference_against_float64(case):
    operands, options = draw(dtype=torch.float32, **case[0]), case[1]
    out = public(*operands, **options)
    expected, sizes = oracle(*operands, **options)
    assert out.shape == operands[0].shape and out.dtype == torch.float32
    assert ((out - expected).abs() <= 3e-6 * sizes + 1e-9).all()


HALF_ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SUBNORMAL = (
    {"lengths_q": [109, 0], "lengths_k": [110, 17], "jagged": (False, True), "heads": 2, "width": 1, "seed": 2},
    {"activation": "gelu", "scale": 1 / 37, "inside": True, "window": None},
)
"""Scores so small that activations are below float16's normal numbers."""


@settings(max_examples=60, deadline=None)
@given(case=cases(150), dtype=st.sampled_from([torch.float16, torch.bfloat16]))
@example(case=SUBNORMAL, dtype=torch.float16)
def test_kernel_against_float64(case, dtype):
    """Within the rounding of activations to the operands' dtype, and of what comes out."""
    operands, options = draw(dtype=dtype, **case[0]), case[1]
    out = kernel(*operands, **options)
    expected, sizes = oracle(*operands, **options)
    assert ((out - expected).abs() <= 1.01 * HALF_ULP[dtype] * (sizes + expected.abs()) + 1e-7).all()


@settings(max_examples=30, deadline=None)
@given(case=cases(150), dtype=st.sampled_from([torch.float16, torch.bfloat16]))
def test_gradients_of_the_kernel_against_float64(case, dtype):
    """Within the rounding of the result, and of terms that may cancel: what moves the exact gradients when the operands
    move by as much as rounding may."""
    q, k, v, cu_q, cu_k = draw(dtype=dtype, **case[0])
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(case[0]["seed"])).to(q)
    got = kernel(q, k, v, cu_q, cu_k, **case[1], grad=grad)
    exact = [each.double() for each in (q, k, v, grad)]

    def gradients(q, k, v, grad):
        leaves = [each.detach().requires_grad_() for each in (q, k, v)]
        out, _ = oracle(*leaves, cu_q, cu_k, **case[1])
        return torch.autograd.grad((out * grad).sum(), leaves, allow_unused=True, materialize_grads=True)

    def moved(seed):
        signs = torch.Generator().manual_seed(seed)
        by = [torch.randint(0, 2, each.shape, generator=signs) * 2 - 1 for each in exact]
        return gradients(*(each * (1 + HALF_ULP[dtype] * sign) for each, sign in zip(exact, by, strict=True)))

    rms = lambda x: x.square().mean().sqrt() if x.numel() else x.sum()  # noqa: E731
    for a, b, *others in zip(got, gradients(*exact), *map(moved, range(4)), strict=True):
        assert a.shape == b.shape
        condition = max(rms(other - b) for other in others)
        assert rms(a - b) <= 2 * HALF_ULP[dtype] * rms(b) + condition + 1e-6


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_derivatives_to_float32(activation):
    """One query of 1 against keys of all values: the scores are the keys."""
    scores = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-100.0, 100.0, -3.01, 2.99, 1e-4, -1e-4])])
    scores = scores[(scores.abs() - 3).abs() > 1e-6]  # where the derivative of hard swish jumps
    k = torch.zeros(1, 1, 16, len(scores))
    k[0, 0, 0] = scores
    k, q = k.mT.contiguous(), torch.zeros(1, 1, 1, 16)
    q[..., 0] = 1
    s = scores.double().requires_grad_()
    expected = FORMULAS[activation](s)
    [slope] = torch.autograd.grad(expected.sum(), s)
    out = kernel(k, q, q, None, None, activation, 1.0, False, None)[0, 0, :, 0]
    dq, _, _ = kernel(k, q, q, None, None, activation, 1.0, False, None, grad=q.expand_as(k))
    torch.testing.assert_close(out.double(), expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dq[0, 0, :, 0].double(), slope, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_score_that_is_nan_stays_nan(activation):
    q, k = torch.ones(1, 1, 3, 16), torch.ones(1, 1, 5, 16)
    q[0, 0, 1] = float("nan")
    out = kernel(q, k, k, None, None, activation, 1.0, False, None)
    assert out.isnan().all(-1).flatten().tolist() == [False, True, False]
    _, dk, dv = kernel(q, k, k, None, None, activation, 1.0, False, None, grad=torch.ones_like(q))
    assert dk.isnan().all() and dv.isnan().all()


@pytest.mark.parametrize("activation", ["relu", "relu_squared", "hard_swish"])
def test_a_gradient_that_is_nan_does_not_come_through_what_is_cut_off(activation):
    """As in torch: threshold_backward and hardswish_backward give 0 there. Keys fill their tile: scores of what pads
    one are 0, where hard swish cuts nothing off."""
    q, k = -torch.ones(1, 1, 3, 16), torch.ones(1, 1, 128, 16)  # all scores are -16
    grad = torch.full_like(q, float("nan"))
    for dq, dk, dv in (
        kernel(q, k, k, None, None, activation, 1.0, False, None, grad=grad),
        gdpa_reference.reference_backward(grad, q, k, k, None, None, 3, 128, activation, 1.0, False, -1),
    ):
        assert not dq.any() and not dk.any() and dv.isnan().all()


def test_the_kernels_take_any_strides_and_give_the_same_bits():
    q, k, v, *_ = draw([50], [70], 2, 24, torch.float16, 7, (False, False))
    options = None, None, "gelu", 0.5, False, 9
    first = [kernel(q, k, v, *options), *kernel(q, k, v, *options, grad=q)]
    q, k, v = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in (q, k, v))
    second = [kernel(q, k, v, *options), *kernel(q, k, v, *options, grad=q)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert second[0].stride() == q.stride()


def test_what_is_not_finite_stays_in_its_sequence():
    q, k, v, cu_q, cu_k = draw([20, 30], [140, 7], 2, 16, torch.float16, 8, (True, True))
    options = cu_q, cu_k, "silu", 1.0, False, None
    clean = [kernel(q, k, v, *options), *kernel(q, k, v, *options, grad=q)]
    q[:20], k[:140], v[:140] = float("nan"), float("inf"), float("nan")
    harmed = [kernel(q, k, v, *options), *kernel(q, k, v, *options, grad=q)]
    for a, b, first in zip(clean, harmed, (20, 20, 140, 140), strict=True):
        assert torch.equal(a[first:], b[first:])
        assert not b[:first].isfinite().any()


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_specimens_are_launches_on_no_memory(arch):
    listed = forward.specimens(arch) + backward.specimens(arch)
    assert len({each.name for each in listed}) == len(listed)
    assert all(each.launch.args["q"].is_meta and each.launch.flops for each in listed)
