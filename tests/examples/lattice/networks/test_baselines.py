"""What the network is compared with: shapes, gradients, what fills up, and as many FLOPs as are allowed."""

import pytest
import torch

from examples.lattice.networks.baselines import BODIES, at_flops, baseline
from examples.lattice.networks.fit import flops_of
from tests.examples.lattice.networks.small import toy


@pytest.mark.parametrize("name", BODIES)
def test_a_logit_a_task_and_gradients_for_every_parameter(name):
    torch.manual_seed(0)
    found = toy(80)
    model = baseline(name, found, 8, 12)
    logits = model(*found.batch(torch.arange(80))[0])
    assert logits.shape == (80, 2) and model.training
    logits.square().sum().backward()
    for which, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), which


@pytest.mark.parametrize("name", BODIES)
def test_events_matter_and_what_fills_up_does_not(name):
    torch.manual_seed(0)
    found = toy(20)
    model, (of, _) = baseline(name, found, 8, 12).eval(), found.batch(torch.arange(20))
    there = of.mask.unsqueeze(-1)
    filled, changed = of.events.where(there, 2), (of.events + 1) % 3
    torch.testing.assert_close(model(*of._replace(events=filled)), model(*of))
    assert not torch.allclose(model(*of._replace(events=changed)), model(*of))


@pytest.mark.parametrize("name", BODIES)
def test_is_as_wide_as_the_flops_allow(name):
    found = toy(20)
    hidden = at_flops(name, found, 8, 60_000.0, widest=512)
    cost = lambda width: flops_of(baseline(name, found, 8, width), found)  # noqa: E731
    assert cost(hidden) <= 60_000 < cost(hidden + 4)
