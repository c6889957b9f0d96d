"""Serving: one user's history and n candidates in one call.

The history is repeated inside of the model, where loka's pass `hoist` sees that its work is the same for all
candidates: events, their MLPs, queries, keys and values of the first layer run on one row. The attention between them
is not moved, as its rotation joins angles that no row has with repeated ones.
"""

from __future__ import annotations

from torch import Tensor, nn


class Ranked(nn.Module):
    """A network of one request: events, seconds, mask and domain of one row, the rest of n candidates; (n, tasks)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        ids: Tensor,
        bag: Tensor,
        dense: Tensor,
        events: Tensor,
        seconds: Tensor,
        mask: Tensor,
        domain: Tensor,
        known: Tensor,
        hit: Tensor,
    ) -> Tensor:
        """As in samples.Inputs."""
        n = ids.shape[0]
        user = (events.expand(n, -1, -1, -1), seconds.expand(n, -1, -1), mask.expand(n, -1, -1), domain.expand(n))
        return self.model(ids, bag, dense, *user, known, hit)
