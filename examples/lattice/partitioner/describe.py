"""What is known of a portfolio (a domain with an objective), and how alike two are.

The paper names the criteria: overlap of users and items, the timing of feedback, agreement of gradients, compute by
revenue. How they are measured and joined is ours [I]: theta sketches, so that nobody joins ID sets; the ratio of
delays; the cosine of gradients on one shared model, over the whole of its training. At the end of a training, where
all gradients sum to nothing, some oppose each other whatever they have in common.

Every gradient is taken once from each of several folds of rows. A fold has the same rows at all moments of the
training, so that folds differ by chance alone and say together how large chance is. Moments cannot say it: a small
portfolio shows the same rows at each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from datasketches import theta_jaccard_similarity, theta_sketch, update_theta_sketch
from torch import Tensor, nn

from examples.lattice.checks import DataError

LG_K = 12  # 4096 hashes a sketch: overlaps to about 3 %, 95 % of the time
LEAST_FOLDS = 4  # fewer cannot say how much of a gradient is chance
GRAIN = 2.0**-30  # of a likeness
SURE = 4.0
"""Standard errors that a gradient's squared length lies above 0, or there is no gradient to compare. Of noise in few
directions a smaller multiple would let too much pass; and a cosine of shorter gradients would be chance itself."""


@dataclass(frozen=True, eq=False)
class Portfolio:
    """One (domain, objective).

    users, items  sketches of the IDs it has seen
    delay         seconds until half of its feedback is there; 0 for at once
    flops         of its own model, a sample
    revenue       any unit; only shares count
    gradient      (K, T, P) of its loss by the parameters of a model that all portfolios share: from K folds of rows, at
                  T moments of its training, so that chance and agreement can be told apart
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
        _check(self.name, self.gradient)


@dataclass(frozen=True)
class Weights:
    """What each criterion counts; only their ratios matter."""

    overlap: float = 1.0
    timing: float = 1.0
    gradient: float = 1.0

    def __post_init__(self) -> None:
        each = (self.overlap, self.timing, self.gradient)
        if not all(0 <= weight < float("inf") for weight in each) or not self.total:
            raise ValueError(f"weights are numbers of at least 0 and not all 0, got {self}")

    @property
    def total(self) -> float:
        return self.overlap + self.timing + self.gradient


@dataclass(frozen=True)
class Likeness:
    """overlap: Jaccard index of users and of items, their mean; timing: 1 for equal delays, 1/2 for twice as long;
    gradient: agreement, -1 to 1, and 0 where there is none to compare; total: their weighted mean; known: whether both
    gradients are more than chance, 1 or 0, and of groups the share of such pairs."""

    overlap: float
    timing: float
    gradient: float
    total: float
    known: float = 1.0


def sketch(ids: Iterable[int], lg_k: int = LG_K) -> theta_sketch:
    """A theta sketch of these IDs."""
    found = update_theta_sketch(lg_k)
    for each in ids:
        found.update(int(each))
    return found.compact()


def jaccard(a: theta_sketch, b: theta_sketch) -> tuple[float, float, float]:
    """Low, estimate, high (95 %) of the share of IDs in both among those in either; 0 where neither has any."""
    if a.is_empty() and b.is_empty():
        return 0.0, 0.0, 0.0
    low, estimate, high = theta_jaccard_similarity.jaccard(a, b)
    return low, estimate, high


def likeness(a: Portfolio, b: Portfolio, weights: Weights) -> Likeness:
    return Likeness(*likenesses([a, b], weights)[:, 0, 1].tolist())


def likenesses(portfolios: Sequence[Portfolio], weights: Weights) -> np.ndarray:
    """(fields of Likeness, N, N) of every two of N portfolios; of one with itself it says nothing. All are rounded to
    multiples of GRAIN, so that their sums are exact, in whatever order they are taken."""
    count = len(portfolios)
    overlap = np.zeros((count, count))
    for (i, a), (j, b) in combinations(enumerate(portfolios), 2):
        overlap[i, j] = overlap[j, i] = (jaccard(a.users, b.users)[1] + jaccard(a.items, b.items)[1]) / 2
    late = np.log([1 + each.delay for each in portfolios])  # one second more: at once is not infinitely faster
    timing = np.exp(-np.abs(late[:, None] - late))
    cosines, sure = (each.numpy() for each in agreements([each.gradient for each in portfolios]))
    total = weights.overlap * overlap + weights.timing * timing + weights.gradient * cosines
    found = np.stack([overlap, timing, cosines, total / weights.total, sure[:, None] & sure])
    return np.round(found / GRAIN) * GRAIN


def agreement(a: Tensor, b: Tensor) -> float:
    """The cosine of two portfolios' true gradients (K, T, P), over all moments; 0 where one of them is not known, that
    is, no more than chance. Raises DataError for gradients that are not finite: nothing follows from them."""
    return float(agreements([a, b])[0][0, 1])


def agreements(gradients: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(N, N) cosines of the true gradients (K, T, P) of N portfolios, and (N,) whether each is known.

    Folds differ between the two factors of every product, so that the noise of none is multiplied with itself: it would
    make gradients longer than they are, and the cosine smaller. Where portfolios share rows they share folds as well.
    """
    shapes = {tuple(each.shape) for each in gradients}
    if len(shapes) > 1:
        raise ValueError(f"gradients are compared where they have one shape, got {sorted(shapes)}")
    for each in gradients:
        _check("agreement", each)
    if not all(bool(each.isfinite().all()) for each in gradients):
        raise DataError("agreement needs finite gradients, got NaN or infinity: has the shared model diverged?")
    folds, moments, _ = gradients[0].shape
    between = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    own = torch.zeros(len(gradients), folds, folds, dtype=torch.float64)
    for moment in range(moments):  # one at a time: all of many portfolios would not fit into memory twice
        now = torch.stack([each[:, moment] for each in gradients]).double()
        between += now.sum(1) @ now.sum(1).T - now.flatten(1) @ now.flatten(1).T
        own += now @ now.mT
    known = _more_than_chance(own)
    length = between.diagonal().where(known, 1.0).sqrt()
    cosine = (between / (length[:, None] * length)).clamp(-1.0, 1.0)
    return cosine.where(known[:, None] & known, 0.0), known


def _more_than_chance(products: Tensor) -> Tensor:
    """(N,) whether a gradient's squared length is above 0 by SURE standard errors. products: (N, K, K) of its folds.

    The squared length is the mean product of different folds. Were all chance, these products would vary as they do
    once the mean of each row and column is taken off, which also takes off what a true gradient adds to them.
    """
    count = products.shape[1]
    other = ~torch.eye(count, dtype=torch.bool)
    apart = products.where(other, 0.0)
    rows = apart.sum(2)
    total = rows.sum(1)
    means = (rows[:, :, None] + rows[:, None, :]) / (count - 2) - (total / ((count - 1) * (count - 2)))[:, None, None]
    variance = (products - means).where(other, 0.0).square().sum((1, 2)) / (count * (count - 3))
    mean, error = total / (count * (count - 1)), (2 * variance / (count * (count - 1))).sqrt()
    return (mean > SURE * error) & (mean > 0)


def _check(name: str, gradient: Tensor) -> None:
    if gradient.dim() != 3 or len(gradient) < LEAST_FOLDS:
        raise ValueError(
            f"{name}: a gradient is (folds, moments, parameters), of {LEAST_FOLDS} folds or more, got "
            f"{tuple(gradient.shape)}"
        )


def gradient(loss: Tensor, module: nn.Module) -> Tensor:
    """(P,) by all parameters of `module`, which is left alone."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])
