"""Processors: shapes, hidden ids, a teacher's knowledge, events."""

from itertools import pairwise

import pytest
import torch

from examples.lattice.networks.processors import Categorical, Dense, Events, Known, Mixing, Sequences
from tests.examples.lattice.networks.small import SCHEMA, inputs


def test_shapes():
    of = inputs(5)
    assert Categorical(SCHEMA, 8)(of.ids, of.bag).shape == (5, 4, 8)
    assert Dense(2, 8)(of.dense).shape == (5, 2, 8)
    assert Known(SCHEMA, 8)(of.known, of.hit).shape == (5, 1, 8)
    tokens, (cos, sin) = Sequences(SCHEMA, 8, 1)(of.events, of.seconds)
    assert tokens.shape == (5, 8, 8) and cos.shape == sin.shape == (5, 1, 8, 4)
    assert Mixing(7, 8)([tokens[:, :4], tokens[:, :3]]).shape == (5, 7, 8)


@pytest.mark.parametrize("rms", [True, False])
def test_the_size_of_numbers_is_seen(rms):
    of, x = Dense(3, 8, rms), torch.randn(20, 3)
    for small, large in pairwise((0.1, 0.5, 1.0, 2.0)):
        seen = (of(small * x) - of(large * x)).flatten(1).norm(dim=1)
        assert (seen > 0.02).all()
    assert not any("bias" in name for name, _ in of.named_parameters())


def test_a_miss_is_zeros_whatever_the_embedding():
    of, x = Known(SCHEMA, 8).eval(), torch.randn(4, 3)
    assert not of(x, torch.zeros(4, dtype=torch.bool)).any()
    hit = torch.ones(4, dtype=torch.bool)
    long = 1e3 * x
    cut = SCHEMA.clip * x / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(of(long, hit), of(cut, hit))


def test_training_takes_some_hits_for_misses():
    torch.manual_seed(0)
    of, hit = Known(SCHEMA, 8), torch.ones(2000, dtype=torch.bool)
    missed = ~of(torch.randn(2000, 3), hit)[:, 0].any(dim=1)
    assert 0.05 < missed.float().mean() < 0.15


def test_the_vectors_of_an_events_fields_are_added_up():
    of = Events((5, 3), 8)
    a, b = of.table.weight[4], of.table.weight[5 + 2]
    torch.testing.assert_close(of(torch.tensor([[[4, 2]]]))[0, 0], a + b + of.mlp(a + b))
