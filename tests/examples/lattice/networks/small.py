"""A small network and random rows for it."""

from __future__ import annotations

import torch

from examples.lattice.networks.model import LatticeNetwork
from examples.lattice.networks.samples import Inputs
from examples.lattice.networks.size import Schema, Size

SCHEMA = Schema((7, 5, 4), 6, 2, ((9, 3), (9, 3)), 4, domains=3, tasks=2, known=3)
SIZE = Size(width=8, heads=1, keys=4, tokens=4, k=3, hidden=(12,), ffn=10, head=(6,), untied=(0, 1, 1))


def network(size=SIZE, schema=SCHEMA):
    torch.manual_seed(0)
    return LatticeNetwork(schema, size)


def inputs(batch, schema=SCHEMA, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda high, *shape: torch.randint(high, shape, generator=generator)  # noqa: E731
    sources, length = len(schema.sources), schema.length
    fields = zip(*schema.sources, strict=True)
    events = torch.stack([draw(min(of), batch, sources, length) for of in fields], dim=-1)
    known = draw(length, batch, sources)[..., None] >= torch.arange(length)
    return Inputs(
        torch.stack([draw(count, batch) for count in schema.cardinalities], dim=1),
        draw(schema.bag, batch, 3),
        torch.randn(batch, schema.dense, generator=generator),
        events,
        (1e4 * torch.rand(batch, sources, length, generator=generator)).cumsum(2),
        known,
        draw(schema.domains, batch),
        torch.randn(batch, schema.known, generator=generator),
        draw(2, batch).bool(),
    )


def double(of):
    return Inputs(*(x.double() if x.is_floating_point() else x for x in of))
