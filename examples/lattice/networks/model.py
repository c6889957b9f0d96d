"""A Lattice Network: processors, pairs of a transformer block and a fusion block, one module a task.

    O_cd = mix(O_c, O_d, what a teacher knew)               written to the storage
    O_s  = event model of every source
    L times:  O_s  = TransformerBlock(RoPE(O_s), storage)
              O_cd = FusionBlock([flatten(O_s); storage])   written to the storage
    logit of task t = MLP_t(flatten(O_cd))

Nothing of a sequence reads the candidate before the first cross-attention, so that a request's candidates can share it
(serve.py). The one bias is a logit's own: its base rate [I].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.lattice.networks.fusion import FusionBlock
from examples.lattice.networks.norms import mlp
from examples.lattice.networks.processors import Features, Mixing, Sequences
from examples.lattice.networks.size import Schema, Size
from examples.lattice.networks.storage import Storage
from examples.lattice.networks.transformer import TransformerBlock
from examples.lattice.networks.untie import Untied, among


class LatticeNetwork(nn.Module):
    """Features to one logit a task, (B, tasks). Logits of domains that the schema does not serve mean nothing."""

    def __init__(self, schema: Schema, size: Size) -> None:
        super().__init__()
        if size.untied and len(size.untied) != schema.domains:
            raise ValueError(f"untied names a copy for each of {schema.domains} domains, got {size.untied}")
        self.schema, self.size = schema, size
        width, rms = size.width, size.rms
        one, own = (among(copies, schema.own) for copies in ((0,) * schema.domains, tuple(range(schema.domains))))
        parted = among(size.untied, schema.own) if size.untied else one
        self.features = Features(schema, width, rms)
        self.mixing = Mixing(schema.tokens, width, rms)
        self.sequences = Sequences(schema, width, size.heads, rms)
        self.transformers, self.fusions = nn.ModuleList(), nn.ModuleList()
        for depth in range(size.layers):
            seen = seen_before(schema, size, depth)
            of = seen if size.interleaved else schema.tokens
            self.transformers.append(TransformerBlock(size, of, own if size.by_domain else one))
            untied = parted if depth >= size.layers - size.untied_layers else one
            n = schema.events + seen
            self.fusions.append(
                Untied(lambda n=n: FusionBlock(n, size.tokens, width, size.k, size.hidden, rms), untied)
            )
        heads = own if size.towers else one
        self.tasks = nn.ModuleList(
            Untied(lambda: mlp(size.tokens * width, *size.head, 1, rms=rms), heads) for _ in range(schema.tasks)
        )
        self.base = nn.Parameter(torch.zeros(schema.tasks))

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
        storage = Storage(self.size.storage)
        storage.write("features", self.mixing(self.features(ids, bag, dense, known, hit)))
        s, places = self.sequences(events, seconds)
        there = mask.flatten(1)
        if not self.size.interleaved:
            for block in self.transformers:
                s = block(s, storage.read(), there, places, domain)
        for depth, (block, fusion) in enumerate(zip(self.transformers, self.fusions, strict=True)):
            if self.size.interleaved:
                s = block(s, storage.read(), there, places, domain)
            x = torch.cat([s * there.unsqueeze(2), storage.read()], dim=1)
            cd = fusion(domain, x)
            storage.write(f"layer {depth}", cd)
        flat = cd.flatten(1)
        return torch.cat([task(domain, flat) for task in self.tasks], dim=1) + self.base


def seen_before(schema: Schema, size: Size, depth: int) -> int:
    """Tokens that the storage holds when layer `depth` begins."""
    if size.storage:
        return schema.tokens + depth * size.tokens
    return schema.tokens if depth == 0 else size.tokens
