"""A model as exporters take it well: an embedding bag is exported as a loop over rows, a gather and a sum are not."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn.functional import embedding


class GatheredBag(nn.Module):
    """nn.EmbeddingBag of the mean, with ids that are skipped, in plain operations: (B, most) to (B, d)."""

    def __init__(self, bag: nn.EmbeddingBag) -> None:
        super().__init__()
        if bag.mode != "mean" or bag.padding_idx is None or bag.max_norm is not None:
            raise ValueError(f"expected a bag of the mean that skips an id, got {bag}: write its gather down here")
        self.weight, self.skipped = bag.weight, bag.padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        counts = (ids != self.skipped).unsqueeze(-1).to(self.weight.dtype)
        return (embedding(ids, self.weight) * counts).sum(1) / counts.sum(1).clamp(min=1)


def exportable(model: nn.Module) -> nn.Module:
    """A copy that gives the same."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.EmbeddingBag):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, GatheredBag(module))
    return model
