"""SwishRMSNorm against its formula in float64, its gradient, and that nothing has a bias."""

import torch
from torch import nn

from examples.lattice.networks.norms import EPS, Norm, SwishRMSNorm, mlp


def test_swish_rms_norm_is_its_formula():
    norm, x = SwishRMSNorm(6).double(), torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    nn.init.normal_(norm.gain)
    n = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * norm.gain
    torch.testing.assert_close(norm(x), n * n.sigmoid())
    assert torch.autograd.gradcheck(norm, x)


def test_a_large_mean_cancels_nothing():
    """LayerNorm subtracts two large numbers; RMSNorm's error stays that of float32."""
    x = (1e4 + torch.randn(64, 256)).float()

    @torch.no_grad()
    def error(norm):
        return float((norm(x).double() - norm.double()(x.double())).abs().max())

    assert error(Norm(256)) < 1e-6 < 1e-4 < error(Norm(256, rms=False))


def test_layer_norm_stands_in_its_place():
    x, norm = torch.randn(3, 6), SwishRMSNorm(6, rms=False)
    torch.testing.assert_close(norm(x), nn.functional.silu(nn.functional.layer_norm(x, (6,), eps=EPS)))


def test_an_mlp_has_no_bias_and_nothing_behind_its_last_layer():
    net, x = mlp(5, 7, 3), torch.randn(2, 5)
    assert [type(each) for each in net] == [nn.Linear, SwishRMSNorm, nn.Linear]
    assert not any(name.endswith("bias") for name, _ in net.named_parameters())
    assert not net(torch.zeros(2, 5)).any()
    torch.testing.assert_close(net(x), net[1](x @ net[0].weight.T) @ net[2].weight.T)
