import pytest
import torch

from examples.exfm.distil.gradient_scale import GradientScale


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 20.0])
def test_forward_is_the_identity_and_the_gradient_is_scaled(beta):
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    scaled = GradientScale(beta)(x)
    assert torch.equal(scaled, x)
    above = torch.randn(5, 3, dtype=torch.float64)
    scaled.backward(above)
    assert torch.equal(x.grad, beta * above)


def test_what_is_scaled_is_one_way_only():
    """The other use of x keeps its gradient, and parameters above keep theirs."""
    layer = torch.nn.Linear(3, 1)
    x = torch.randn(4, 3, requires_grad=True)
    (layer(GradientScale(0.5)(x)).sum() + x.sum()).backward()
    assert torch.allclose(x.grad, 1 + 0.5 * layer.weight.expand(4, 3))
    assert torch.allclose(layer.weight.grad, x.sum(0, keepdim=True))


def test_it_prints_what_it_does():
    assert "beta=0.5" in repr(GradientScale(0.5))
