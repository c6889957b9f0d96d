"""What Lattice Networks are compared with: DLRM, DCNv2, MaskNet, Wukong and BST over the same features and tasks.

All read the same tokens: one a field, the bag, numbers, and what a teacher knew; BST reads the sequences, the others
the mean of each source's events as a token more. All have one linear head for each task on their last layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from examples.lattice.networks.fit import flops_of
from examples.lattice.networks.processors import Features
from examples.lattice.networks.samples import Samples
from examples.lattice.networks.size import Schema
from examples.models.dcnv2 import CrossLayer
from examples.models.sequence import Block
from examples.models.wukong import WukongLayer, mlp

Body = Callable[[int, int, int], nn.Module]
"""n tokens of width d, and how wide the network is, to a module from (B, n, d) to (B, any); one that reads sequences
also takes a mask (B, n) of the tokens that are there."""


class Baseline(nn.Module):
    """Tokens to a body to one logit a task. sequence: whether the body reads the events one by one."""

    def __init__(self, schema: Schema, body: Body, width: int, hidden: int, sequence: bool) -> None:
        super().__init__()
        self.sequence = sequence
        self.features = Features(schema, width)
        self.events = nn.ModuleList(_table(each, width) for each in schema.sources)
        self.starts = [torch.tensor((0, *each[:-1])).cumsum(0).tolist() for each in schema.sources]
        n = schema.tokens + (schema.events if sequence else len(schema.sources))
        self.body = body(n, width, hidden)
        self.tasks = nn.LazyLinear(schema.tasks)

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
        tokens = self.features(ids, bag, dense, known, hit)
        for table, starts, of, there in zip(self.events, self.starts, events.unbind(1), mask.unbind(1), strict=True):
            vectors = sum(table(of[..., field] + start) for field, start in enumerate(starts))
            vectors = vectors * there.unsqueeze(2)
            if not self.sequence:
                vectors = vectors.sum(1, keepdim=True) / there.sum(1)[:, None, None]
            tokens.append(vectors)
        x = torch.cat(tokens, dim=1)
        if not self.sequence:
            return self.tasks(self.body(x))
        always = mask.new_ones(len(x), x.shape[1] - mask[0].numel())
        return self.tasks(self.body(x, torch.cat([always, mask.flatten(1)], dim=1)))


def _table(cardinalities: tuple[int, ...], width: int) -> nn.Embedding:
    table = nn.Embedding(sum(cardinalities), width)
    nn.init.normal_(table.weight, std=width**-0.5)
    return table


class DotProducts(nn.Module):
    """DLRM: all pairs' dot products beside the tokens, an MLP over both."""

    def __init__(self, n: int, width: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("pairs", torch.triu_indices(n, n, offset=1), persistent=False)
        self.mlp = nn.Sequential(mlp(n * (n - 1) // 2 + n * width, hidden, hidden, dropout=0.0), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        products = (x @ x.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.mlp(torch.cat([products, x.flatten(1)], dim=1))


class Cross(nn.Module):
    """DCNv2: cross layers beside an MLP. The cross layers are square, so `hidden` widens the MLP alone."""

    def __init__(self, n: int, width: int, hidden: int, layers: int = 2) -> None:
        super().__init__()
        self.cross = nn.ModuleList(CrossLayer(n * width) for _ in range(layers))
        self.deep = nn.Sequential(mlp(n * width, hidden, hidden, dropout=0.0), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x0 = x = x.flatten(1)
        for layer in self.cross:
            x = layer(x0, x)
        return torch.cat([x, self.deep(x0)], dim=1)


class MaskBlocks(nn.Module):
    """MaskNet (Wang et al., 2021), serial: each block multiplies what it reads by a mask that an MLP makes of the
    features, then a linear layer, LayerNorm and ReLU."""

    def __init__(self, n: int, width: int, hidden: int, blocks: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        sizes = [n * width, *(hidden,) * blocks]
        self.masks = nn.ModuleList(mlp(n * width, hidden, size, dropout=0.0) for size in sizes[:-1])
        self.linears = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.ReLU()) for a, b in pairwise(sizes)
        )

    def forward(self, x: Tensor) -> Tensor:
        features, x = x.flatten(1), self.norm(x).flatten(1)
        for mask, linear in zip(self.masks, self.linears, strict=True):
            x = linear(x * mask(features))
        return x


class WukongStack(nn.Module):
    """Wukong's layers; `hidden` is the width of their factorization machines' MLPs."""

    def __init__(self, n: int, width: int, hidden: int, layers: int = 2, tokens: int = 8, k: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(WukongLayer(n if i == 0 else tokens, tokens, width, k, (hidden,), 0.0) for i in range(layers))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten(1)


class BehaviourSequence(nn.Module):
    """BST: one transformer block over events and features alike, then an MLP over all tokens."""

    def __init__(self, n: int, width: int, hidden: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(n, width) / 10)
        self.block = Block(width, 2, 4 * width, 0.0)
        self.mlp = nn.Sequential(mlp(n * width, hidden, hidden, dropout=0.0), nn.ReLU())

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.mlp(self.block(x + self.places, mask[:, None, None, :]).flatten(1))


BODIES: Mapping[str, tuple[Body, bool]] = {
    "DLRM": (DotProducts, False),
    "DCNv2": (Cross, False),
    "MaskNet": (MaskBlocks, False),
    "Wukong": (WukongStack, False),
    "BST": (BehaviourSequence, True),
}


def baseline(name: str, found: Samples, width: int, hidden: int) -> Baseline:
    """One of BODIES for this data; torch's seed draws its weights."""
    body, sequence = BODIES[name]
    model = Baseline(found.schema, body, width, hidden, sequence)
    with torch.no_grad():
        model.eval()(*found.batch(torch.arange(2) % len(found.labels))[0])  # the heads learn how wide the body is
    return model.train()


def at_flops(name: str, found: Samples, width: int, flops: float, widest: int = 2048) -> int:
    """The largest hidden width, a multiple of 4, that costs no more than so many FLOPs a row; 4 if none does."""
    low, high = 1, widest // 4
    while low < high:
        middle = (low + high + 1) // 2
        if flops_of(baseline(name, found, width, 4 * middle), found, 2) <= flops:
            low = middle
        else:
            high = middle - 1
    return 4 * low
