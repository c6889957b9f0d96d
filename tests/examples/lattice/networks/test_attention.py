"""Attention against softmax written out in float64: QK-norm, RoPE, masks."""

import pytest
import torch

from examples.kunlun.rote import angles
from examples.lattice.networks.attention import Attention

B, T, C, WIDTH, HEADS = 2, 5, 3, 16, 2


def unit(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def turned(x, cos, sin):
    a, b = x[..., :4], x[..., 4:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def by_hand(of, x, context, mask, places, qk_norm):
    q, kv = unit(x) @ of.q.weight.T, unit(context) @ of.kv.weight.T
    k, v = kv[..., :WIDTH], kv[..., WIDTH:]
    out = []
    for head in range(HEADS):
        at = slice(8 * head, 8 * head + 8)
        a, b = (unit(q[..., at]), unit(k[..., at])) if qk_norm else (q[..., at], k[..., at])
        if places is not None:
            a, b = (turned(each, *(p[:, 0] for p in places)) for each in (a, b))
        scores = a @ b.mT / 8**0.5
        out.append(scores.masked_fill(~mask[:, None, :], -torch.inf).softmax(-1) @ v[..., at])
    return torch.cat(out, dim=-1) @ of.out.weight.T


@pytest.mark.parametrize("qk_norm", [True, False])
def test_is_softmax_over_normalised_and_turned_heads(qk_norm):
    torch.manual_seed(0)
    of = Attention(WIDTH, HEADS, qk_norm, rms=True).double()
    s = torch.randn(B, T, WIDTH, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True, False], [True] * 5])
    places = angles(torch.arange(T), torch.rand(B, T, dtype=torch.float64), WIDTH // HEADS)
    torch.testing.assert_close(of(s, s, mask, places), by_hand(of, s, s, mask, places, qk_norm))
    context = torch.randn(B, C, WIDTH, dtype=torch.float64)
    everything = torch.ones(B, C, dtype=torch.bool)
    torch.testing.assert_close(of(s, context), by_hand(of, s, context, everything, None, qk_norm))


def test_with_qk_norm_the_size_of_queries_does_not_matter():
    s, c = torch.randn(B, T, WIDTH), torch.randn(B, C, WIDTH)
    for qk_norm in (True, False):
        torch.manual_seed(0)
        of = Attention(WIDTH, HEADS, qk_norm, rms=True)
        before = of(s, c)
        with torch.no_grad():
            of.q.weight *= 20
        assert torch.allclose(before, of(s, c), atol=1e-4) == qk_norm


def test_gradients_are_right():
    of = Attention(8, 1, True, True).double()
    args = [torch.randn(1, n, 8, dtype=torch.float64, requires_grad=True) for n in (3, 2)]
    assert torch.autograd.gradcheck(of, args)
