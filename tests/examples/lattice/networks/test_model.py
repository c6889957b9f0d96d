"""The network: every switch, gradients, that what fills up and what comes later never matter, its token counts."""

from dataclasses import replace

import pytest
import torch

from examples.lattice.networks.serve import Ranked
from examples.lattice.networks.untie import for_domain
from tests.examples.lattice.networks.small import SCHEMA, SIZE, double, inputs, network

SWITCHES = [
    {},
    {"interleaved": False},
    {"storage": False},
    {"qk_norm": False},
    {"rms": False},
    {"by_domain": False, "untied": ()},
    {"towers": True, "untied_layers": 2},
    {"layers": 3},
    {"layers": 3, "storage": False, "interleaved": False},
]


@pytest.mark.parametrize("changes", SWITCHES)
def test_every_switch_gives_logits_and_gradients_for_every_parameter(changes):
    model = network(replace(SIZE, **changes))
    logits = model(*inputs(40))
    assert logits.shape == (40, 2) and logits.isfinite().all()
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_only_the_base_rates_are_biases():
    assert [name for name, _ in network().named_parameters() if "bias" in name or name == "base"] == ["base"]


def test_what_fills_up_never_matters():
    model, of = network().double().eval(), double(inputs(12))
    there = of.mask.unsqueeze(-1)
    junk = of._replace(events=of.events.where(there, 2), seconds=of.seconds.where(of.mask, 1e7))
    torch.testing.assert_close(model(*junk), model(*of))


def test_every_event_matters():
    model, of = network().double().eval(), double(inputs(6))
    expected = model(*of)
    for source in range(2):
        events = of.events.clone()
        events[:, source, :, 0] = (events[:, source, :, 0] + 1) % 9
        assert not torch.isclose(model(*of._replace(events=events)), expected, rtol=1e-9, atol=0).any()


def test_rows_do_not_depend_on_their_neighbours():
    model, of = network().double().eval(), double(inputs(6))
    alone = type(of)(*(x[:2] for x in of))
    torch.testing.assert_close(model(*alone), model(*of)[:2])


def test_a_served_domain_has_the_logits_of_the_model():
    model, of = network(replace(SIZE, towers=True)).double().eval(), double(inputs(30))
    for domain in range(3):
        own = of.domain == domain
        rows = type(of)(*(x[own] for x in of))
        torch.testing.assert_close(for_domain(model, domain)(*rows), model(*rows))


def test_one_request_of_many_candidates_is_the_same_as_its_rows():
    model, of = network().double().eval(), double(inputs(5))
    once = of._replace(**{name: getattr(of, name)[:1] for name in ("events", "seconds", "mask", "domain")})
    rows = once._replace(
        **{
            name: getattr(once, name).expand(5, *getattr(once, name).shape[1:])
            for name in ("events", "seconds", "mask", "domain")
        }
    )
    torch.testing.assert_close(Ranked(model)(*once), model(*rows))


def test_there_are_weights_for_the_domains_that_are_served_alone():
    size = replace(SIZE, towers=True, untied=(0, 1, 2))
    every, two, one = (network(size, replace(SCHEMA, served=of)) for of in ((), (0, 2), (2,)))
    count = [sum(p.numel() for p in model.parameters()) for model in (every, two, one)]
    assert count[0] - count[1] == count[1] - count[2] > 0
    tied = replace(size, towers=False, untied=(), by_domain=False)
    assert count[2] == sum(p.numel() for p in network(tied).parameters())
    of = double(inputs(30))
    own = of.domain != 1
    rows = type(of)(*(x[own] for x in of))
    torch.testing.assert_close(two.double().eval()(*rows), every.double().eval()(*of)[own])
    with pytest.raises(ValueError, match=r"one of \[0, 2\], got 1"):
        for_domain(two, 1)
    for served in ((2, 0), (0, 3), (1, 1)):
        with pytest.raises(ValueError, match="some of 3 domains in rising order"):
            replace(SCHEMA, served=served)


def test_untied_names_every_domain():
    with pytest.raises(ValueError, match="each of 3 domains"):
        network(replace(SIZE, untied=(0, 1)))
    with pytest.raises(ValueError, match="without gaps, got untied"):
        network(replace(SIZE, untied=(0, 2, 2)))
    with pytest.raises(ValueError, match="multiple of 4 x 2 heads, got 12"):
        replace(SIZE, width=12, heads=2)


def test_without_numbers_and_without_a_teacher():
    schema = replace(SCHEMA, dense=0, known=0)
    model = network(schema=schema)
    assert model(*inputs(3, schema)).shape == (3, 2)
