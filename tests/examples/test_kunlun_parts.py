"""The parts of Kunlun are their definitions: positions, sums of Kronecker products, GDPA, pooling and experts."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, rms_norm

from examples.kunlun.attention import SelfAttention
from examples.kunlun.interaction import WeightGeneration, WukongExperts
from examples.kunlun.pffn import GDPA, FeedForward, gdpa
from examples.kunlun.pooling import HSP, PMA, SumKronLinear
from examples.kunlun.rote import angles, log_time, rotate


def test_rote_depends_on_differences_of_index_and_log_time_only():
    q, k = torch.randn(2, 3, 2, 7, 16, dtype=torch.float64).unbind(0)
    index, tau = torch.arange(7.0, dtype=torch.float64), torch.rand(3, 7, dtype=torch.float64).cumsum(1)

    def scores(index, tau):
        turn = angles(index, tau, 16)
        return rotate(q, *turn) @ rotate(k, *turn).transpose(-1, -2)

    expected = scores(index, tau)
    torch.testing.assert_close(scores(index + 5, tau + 0.7), expected)
    assert not torch.allclose(scores(index * 2, tau), expected)
    assert not torch.allclose(scores(index, tau * 2), expected)


def test_rote_keeps_lengths_and_refuses_odd_widths():
    x = torch.randn(2, 1, 5, 8)
    turned = rotate(x, *angles(torch.arange(5), torch.rand(2, 5), 8))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    with pytest.raises(ValueError, match="got 6"):
        angles(torch.arange(5), torch.rand(2, 5), 6)
    assert log_time(torch.tensor(0.0)) == 0


def test_sum_kron_linear_is_its_definition():
    layer, x = SumKronLinear(5, 3, 4, 6, rank=2).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    expected = sum(layer.z[i].T @ x @ layer.w[i] for i in range(2))
    torch.testing.assert_close(layer(x), expected)
    kronecker = sum(torch.kron(layer.z[i].T.contiguous(), layer.w[i].T.contiguous()) for i in range(2))
    torch.testing.assert_close(layer(x).flatten(1), x.flatten(1) @ kronecker.T)


def test_gdpa_is_the_block_as_deployed():
    block, x_sum, s = GDPA(16, 2, 5, 3, 12).double(), torch.randn(2, 3, 12).double(), torch.randn(2, 7, 16).double()
    tokens = gelu(block.mix(x_sum.mT).mT)
    keys, values = block.kv(tokens).chunk(2, dim=-1)
    n = layer_norm(s, (16,))
    heads = [gelu(n[..., h] @ keys[..., h].mT) @ values[..., h] / 5**0.5 for h in (slice(0, 8), slice(8, 16))]
    torch.testing.assert_close(block(x_sum, s), rms_norm(torch.cat(heads, dim=-1) + n, (16,), eps=1e-5) + s)


def test_gdpa_has_no_softmax():
    q, k, v = (torch.randn(1, 1, n, 4) for n in (3, 5, 5))
    torch.testing.assert_close(gdpa(q, k, v, 2.0), 2 * gdpa(q, k, v, 1.0))
    torch.testing.assert_close(
        gdpa(q, k, v, 1.0), gdpa(q, k[..., :2, :], v[..., :2, :], 1.0) + gdpa(q, k[..., 2:, :], v[..., 2:, :], 1.0)
    )


def test_parts_have_their_shapes():
    s, mask, x_sum = torch.randn(2, 9, 16), torch.ones(2, 9, dtype=torch.bool), torch.randn(2, 3, 12)
    turn = angles(torch.arange(9), torch.rand(2, 9), 8)
    assert SelfAttention(16, 2)(s, *turn, mask).shape == s.shape
    assert FeedForward(16, 10)(x_sum, s).shape == s.shape
    assert PMA(16, 2, 4, 12)(s, mask).shape == (2, 4, 12)
    assert HSP(16, 2, 6, 3, 2, 12)(s, mask).shape == (2, 3, 12)
    assert WeightGeneration(5, 3, 12)(torch.randn(2, 5, 12)).shape == (2, 3, 12)
    assert WukongExperts(6, 12, 2, 4, (16,), 0.0)(torch.randn(2, 6, 12)).shape == (2, 6, 12)
    with pytest.raises(ValueError, match="7 tokens"):
        WukongExperts(7, 12, 2, 4, (16,), 0.0)


def test_an_expert_sees_its_own_tokens_only():
    experts, x = WukongExperts(6, 12, 2, 4, (16,), 0.0).eval(), torch.randn(2, 6, 12)
    changed = x.clone()
    changed[:, 1] += torch.randn(12)  # dealt to the second expert
    before, after = experts(x), experts(changed)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])
