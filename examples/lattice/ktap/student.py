"""What the student does with a teacher's knowledge: its embedding as a feature, its logit as a soft label.

The paper has the lookup at training and at serving, clipped embeddings, smoothed labels, zeros and no soft label on a
miss. The hit flag, hits dropped at random in training, and cross-entropy on each task's own soft target are ours [I].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.lattice.ktap.guard import Guarded
from examples.lattice.ktap.record import Knowledge, Misses, TeacherId, decode, key
from examples.lattice.ktap.store import Store
from examples.models.dlrm import Tokens
from examples.models.wukong import mlp


@dataclass(frozen=True)
class Use:
    """embedding, labels: which knowledge is used. clip: largest length of an embedding. weight: of the soft labels'
    loss; smooth: how far they are drawn to one half. drop: share of hits that training takes for misses."""

    embedding: bool = True
    labels: bool = True
    clip: float = 10.0
    weight: float = 1.0
    smooth: float = 0.05
    drop: float = 0.1


class Student(nn.Module):
    """ids (B, F), bag (B, most), and knowledge as embedding (B, width) and hit (B,) to logits (B, tasks)."""

    def __init__(
        self,
        cardinalities: tuple[int, ...],
        bag: int,
        tasks: int,
        known: int,
        use: Use,
        *,
        width: int = 8,
        hidden: tuple[int, ...] = (64, 32),
    ) -> None:
        super().__init__()
        self.use, self.known = use, known
        self.tokens = Tokens(cardinalities, bag, width)
        extra = known + 1 if use.embedding else 0
        self.net = mlp((len(cardinalities) + 1) * width + extra, *hidden, tasks, dropout=0.0)

    def forward(self, ids: Tensor, bag: Tensor, embedding: Tensor, hit: Tensor) -> Tensor:
        x = self.tokens(ids, bag).flatten(1)
        if self.use.embedding:
            if self.training:
                hit = hit & (torch.rand_like(hit, dtype=torch.float) >= self.use.drop)
            seen = hit.unsqueeze(1).to(x.dtype)
            x = torch.cat([x, clip(embedding, self.use.clip) * seen, seen], dim=1)
        return self.net(x)


def clip(embedding: Tensor, length: float) -> Tensor:
    """Embeddings no longer than `length`."""
    return embedding * (length / embedding.norm(dim=1, keepdim=True).clamp(min=length))


def loss(logits: Tensor, labels: Tensor, knowledge: Knowledge, use: Use) -> Tensor:
    """Cross-entropy with the labels, and with the smoothed soft labels where there are any; both over the labels that
    are known. A row that says nothing about a task has nan for its label."""
    known = ~labels.isnan()
    count = known.sum().clamp(min=1)
    hard = binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    found = (hard * known).sum() / count
    if not use.labels:
        return found
    soft = (1 - use.smooth) * knowledge.logits.sigmoid() + use.smooth / 2
    each = binary_cross_entropy_with_logits(logits, soft, reduction="none") * known
    return found + use.weight * (each * knowledge.hit.unsqueeze(1)).sum() / count


def look_up(
    store: Store,
    users: Sequence[int],
    items: Sequence[int],
    times: Sequence[float],
    width: int,
    tasks: int,
    teacher: TeacherId,
) -> tuple[Knowledge, Misses]:
    """What the store knows of these impressions from before they were made, from this version of the teacher; why
    nothing of the others. Of its time a guard's deadline bounds the store's part; the rest grows with the rows."""
    keys = [key(user, item, teacher) for user, item in zip(users, items, strict=True)]
    values = store.answers(keys) if isinstance(store, Guarded) else store.get(keys)
    return decode(keys, values, width, tasks, times, teacher)
