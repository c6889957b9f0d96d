"""A Lattice Network as it serves one domain, for `loka preview examples.lattice.networks.example:example`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.lattice.networks import samples
from examples.lattice.networks.model import LatticeNetwork
from examples.lattice.networks.size import Size
from examples.lattice.networks.untie import for_domain

BATCH = 4096


def example() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model and one batch of MovieLens."""
    found = samples.movielens()
    torch.manual_seed(0)
    inputs, _ = found.batch(torch.arange(BATCH))
    return for_domain(LatticeNetwork(found.schema, Size()), 0).eval(), tuple(inputs)
