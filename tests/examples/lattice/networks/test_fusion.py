"""The fusion block against its formula in float64, and its gradients."""

import torch

from examples.lattice.networks.fusion import FusionBlock
from examples.lattice.networks.norms import EPS

N, OUT, WIDTH, K = 5, 4, 6, 3


def block():
    torch.manual_seed(0)
    return FusionBlock(N, OUT, WIDTH, K, (7,)).double()


def rms(x):
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


def test_is_dhens_ensemble_of_wukongs_interactions():
    of, x = block(), torch.randn(2, N, WIDTH, dtype=torch.float64)
    first, _, last = of.fmb
    pairs = rms((x @ x.mT @ of.compress).flatten(1))
    n = rms(pairs @ first.weight.T)
    fmb = (n * n.sigmoid() @ last.weight.T).reshape(2, OUT // 2, WIDTH)
    lcb, shortcut = (mix.linear.weight @ x for mix in (of.lcb, of.shortcut))
    torch.testing.assert_close(of(x), rms(torch.cat([fmb, lcb], dim=1) + shortcut))


def test_gradients_are_right():
    x = torch.randn(2, N, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block(), x)
