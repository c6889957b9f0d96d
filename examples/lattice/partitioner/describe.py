"""What is known of a portfolio (a domain with an objective), and how alike two are.

The paper names the criteria: overlap of users and items, the timing of feedback, agreement of gradients, compute by
revenue. How they are measured and joined is ours [I]: theta sketches, so that nobody joins ID sets; the ratio of
delays; the cosine of gradients on one shared model, over the whole of its training. At the end of a training, where
all gradients sum to nothing, some oppose each other whatever they have in common.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, log

import torch
from datasketches import theta_jaccard_similarity, theta_sketch, update_theta_sketch
from torch import Tensor, nn

LG_K = 12  # 4096 hashes a sketch: overlaps to about 3 %, 95 % of the time


@dataclass(frozen=True, eq=False)
class Portfolio:
    """One (domain, objective).

    users, items  sketches of the IDs it has seen
    delay         seconds until half of its feedback is there; 0 for at once
    flops         of its own model, a sample
    revenue       any unit; only shares count
    gradient      (2, T, P) of its loss by the parameters of a model that all portfolios share, at T moments of its
                  training, twice from different rows, so that chance and agreement can be told apart
    """

    name: str
    users: theta_sketch
    items: theta_sketch
    delay: float
    flops: float
    revenue: float
    gradient: Tensor

    def __post_init__(self) -> None:
        wrong = [name for name in ("delay", "flops", "revenue") if not 0 <= getattr(self, name) < float("inf")]
        if wrong:
            raise ValueError(f"{self.name}: {wrong[0]} is a number of at least 0, got {getattr(self, wrong[0])}")


@dataclass(frozen=True)
class Weights:
    """What each criterion counts; only their ratios matter."""

    overlap: float = 1.0
    timing: float = 1.0
    gradient: float = 1.0

    def __post_init__(self) -> None:
        if min(self.overlap, self.timing, self.gradient) < 0 or not self.total:
            raise ValueError(f"weights are not negative and not all 0, got {self}")

    @property
    def total(self) -> float:
        return self.overlap + self.timing + self.gradient


@dataclass(frozen=True)
class Likeness:
    """overlap: Jaccard index of users and of items, their mean; timing: 1 for equal delays, 1/2 for twice as long;
    gradient: agreement, -1 to 1; total: their weighted mean."""

    overlap: float
    timing: float
    gradient: float
    total: float


def sketch(ids: Iterable[int], lg_k: int = LG_K) -> theta_sketch:
    """A theta sketch of these IDs."""
    found = update_theta_sketch(lg_k)
    for each in ids:
        found.update(int(each))
    return found.compact()


def jaccard(a: theta_sketch, b: theta_sketch) -> tuple[float, float, float]:
    """Low, estimate, high (95 %) of the share of IDs in both among those in either."""
    low, estimate, high = theta_jaccard_similarity.jaccard(a, b)
    return low, estimate, high


def likeness(a: Portfolio, b: Portfolio, weights: Weights) -> Likeness:
    overlap = (jaccard(a.users, b.users)[1] + jaccard(a.items, b.items)[1]) / 2
    timing = exp(-abs(log((1 + a.delay) / (1 + b.delay))))  # one second more, so that at once is not infinitely faster
    agrees = agreement(a.gradient, b.gradient)
    total = weights.overlap * overlap + weights.timing * timing + weights.gradient * agrees
    return Likeness(overlap, timing, agrees, total / weights.total)


def agreement(a: Tensor, b: Tensor) -> float:
    """The cosine of two portfolios' true gradients (2, T, P), over all moments; 0 where one is no more than chance.
    Raises ValueError for gradients that are not finite: nothing follows from them.

    Rows differ between the two factors of every product, so that the noise of none is multiplied with itself: it would
    make gradients longer than they are, and the cosine smaller.
    """
    if not (bool(a.isfinite().all()) and bool(b.isfinite().all())):
        raise ValueError("agreement needs finite gradients, got NaN or infinity: has the shared model diverged?")
    product, own_a, own_b = ((x[0] * y[1] + x[1] * y[0]).double().sum() / 2 for x, y in ((a, b), (a, a), (b, b)))
    if own_a <= 0 or own_b <= 0:
        return 0.0
    return max(-1.0, min(1.0, float(product / (own_a * own_b).sqrt())))


def gradient(loss: Tensor, module: nn.Module) -> Tensor:
    """(P,) by all parameters of `module`, which is left alone."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])
