"""loka.pffn, composed and as one op: against the block written out in float64; the kernel is interpreted where there is
no GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import loka_compile as loka
from loka_compile.kernels.gdpa import gdpa_pffn as module
from loka_compile.kernels.gdpa import gdpa_pffn_kernel as fused
from loka_compile.kernels.gdpa.gdpa_pffn import Pffn
from loka_compile.kernels.gdpa.gdpa_reference import ACTIVATIONS
from loka_compile.kernels.launch import arch_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS, EPS_OUT = 1e-5, 1e-3


def written_out(q, k, v, scale):
    """One sample: q (T, H, D); k, v (H, N, D)."""
    heads, width = q.shape[1:]
    ln = F.layer_norm(q.flatten(1), [heads * width]).view_as(q)
    attended = torch.stack([F.gelu(ln[:, h] @ k[h].T) * scale @ v[h] for h in range(heads)], 1)
    z = attended + ln
    return F.rms_norm(z.flatten(1), [heads * width], eps=1e-5).view_as(q) + q


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_against_modules(dtype):
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2}[dtype]
    torch.manual_seed(0)
    q = torch.randn(12, 3, 8).to(dtype)
    k, v = (torch.randn(3, 3, 5, 8).to(dtype) for _ in range(2))
    lengths = [4, 0, 8]
    cu_seqlens = torch.tensor([0, 4, 4, 12])
    out = loka.pffn(q, k, v, scale=0.25, cu_seqlens_q=cu_seqlens)
    each = zip(q.double().split(lengths), k.double(), v.double(), strict=True)
    expected = torch.cat([written_out(*sample, 0.25) for sample in each])
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    dense = loka.pffn(q[None, 4:].transpose(1, 2), k[2:], v[2:], scale=0.25)
    torch.testing.assert_close(dense[0].transpose(0, 1).double(), expected[4:], rtol=tolerance, atol=tolerance)


def test_gradcheck():
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, 2, n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 3, 3))
    assert torch.autograd.gradcheck(lambda *qkv: loka.pffn(*qkv, activation="silu"), (q, k, v))


# ---------------------------------------------------------------- the op


def draw(b, rows, heads, keys, d, dtype, seed):
    """Tokens, and keys and values with the strides that a model's permute leaves."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(b, rows, heads * d, generator=generator)
    kv = torch.randn(2, b, keys, heads, d, generator=generator).transpose(2, 3)
    return [each.to(DEVICE, dtype) for each in (x, kv[0], kv[1] / keys**0.5)]


def kernel(x, k, v, *rest):
    """What the op does on a GPU. Triton 3.7's interpreter multiplies and rounds bfloat16 wrongly: there in float32."""
    arch, dtype = arch_of(x) if x.is_cuda else "sm_90", x.dtype
    if not x.is_cuda and dtype == torch.bfloat16:
        x, k, v = x.float(), k.float(), v.float()
    out = torch.full_like(x, 99)
    fused.launch(x, k, v, out, *rest, arch).run()
    return out.to(dtype)


SHAPES = st.tuples(
    st.integers(1, 3),
    st.integers(1, 70),
    st.integers(1, 4),
    st.sampled_from([1, 7, 16, 33]),
    st.sampled_from([3, 8, 17, 32]),
)


@settings(max_examples=25, deadline=None)
@given(
    SHAPES,
    st.sampled_from(sorted(ACTIVATIONS)),
    st.booleans(),
    st.sampled_from([torch.float16, torch.bfloat16]),
    st.integers(0, 99),
)
def test_kernel_against_float64(shape, activation, inside, dtype, seed):
    x, k, v = draw(*shape, dtype, seed)
    rest = activation, 0.3, inside, EPS, EPS_OUT
    expected = module.reference(x.double(), k.double(), v.double(), *rest)
    out = kernel(x, k, v, *rest)
    assert out.dtype == dtype and out.shape == x.shape
    # what is rounded before the end: the normalised tokens and the activations
    tolerance = 2.0**-6 if dtype == torch.bfloat16 else 2.0**-9
    bound = tolerance * (1 + expected.abs()) * (1 + k.double().square().sum(-1).amax() ** 0.5 / 4)
    assert bool(((out.double() - expected).abs() <= bound).all())


def test_what_is_not_finite_stays_in_its_token():
    x, k, v = draw(2, 9, 2, 5, 8, torch.float16, 0)
    rest = "gelu", 0.3, False, EPS, EPS_OUT
    clean = kernel(x, k, v, *rest)
    x[1, 4, 3] = float("inf")
    out = kernel(x, k, v, *rest)
    assert bool(out[1, 4].isnan().all())
    out[1, 4] = clean[1, 4]
    assert torch.equal(out, clean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    torch.library.opcheck(Pffn.target(), (*draw(2, 5, 2, 3, 8, dtype, 0), "silu", 0.5, True, EPS, EPS_OUT))


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_specimens_are_launches_on_no_memory(arch):
    for each in fused.specimens(arch):
        assert each.launch.args["x"].device.type == "meta" and each.launch.nbytes < sum(n for *_, n in each.unfused) / 3


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1, 2, 2, 4, 8), torch.float32, "the kernel multiplies bfloat16 and float16, not torch.float32"),
        ((1, 2, 2, 129, 8), torch.float16, "129 keys; the kernel holds 128 at most"),
        ((1, 2, 3, 4, 65), torch.float16, "3 heads of 65: the kernel keeps 8 heads and 256 values at most"),
        ((1, 2, 9, 4, 8), torch.float16, "9 heads of 8: the kernel keeps 8 heads and 256 values at most"),
    ],
)
def test_reasons(shape, dtype, reason):
    x, k, _ = draw(*shape, dtype, 0)
    assert fused.reasons_against(x, k) == [reason]


def test_bad_arguments():
    x, k, v = draw(2, 5, 2, 3, 8, torch.float32, 0)
    for args, message in (
        ((x, k, v, "softmax"), "activation must be one of"),
        ((x[0], k, v, "relu"), "x must be"),
        ((x[:, :, 1:], k, v, "relu"), "tokens of H"),
        ((x, k, v[:1], "relu"), "x must be"),
    ):
        with pytest.raises(ValueError, match=message):
            Pffn(*args, 1.0, False, EPS, EPS)()
