"""Which features to keep within a budget: whole Pareto fronts while they fit, then at random from the next.

Beside it what it is compared with: the weighted sum of importances, one task's alone, and chance.
"""

from __future__ import annotations

import numpy as np

from examples.lattice.filter.fronts import finite, fronts


def pareto(scores: np.ndarray, budget: int, rng: np.random.Generator, sigma: np.ndarray | float = 0.0) -> np.ndarray:
    """(budget,) features in the order in which they were taken; the last front's share is drawn, as in the paper."""
    _check(scores, budget)
    rank = fronts(scores, sigma)
    shuffled = rng.permutation(len(scores))
    return shuffled[np.argsort(rank[shuffled], kind="stable")][:budget]


def weighted_sum(scores: np.ndarray, budget: int, weights: np.ndarray | None = None) -> np.ndarray:
    """The largest sums over tasks, each task weighted (by default all alike)."""
    _check(scores, budget)
    weights = np.ones(scores.shape[1]) if weights is None else np.asarray(weights)
    if weights.shape != scores.shape[1:] or not np.isfinite(weights).all():
        raise ValueError(f"expected a finite weight for each of {scores.shape[1]} tasks, got {weights}")
    return np.argsort(-(scores @ weights), kind="stable")[:budget]


def scales(scores: np.ndarray) -> np.ndarray:
    """Weights with which each task's importances, those above 0, sum to 1; 0 for a task that has none."""
    finite(scores)
    total = scores.clip(0).sum(0)
    return np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)


def single_task(scores: np.ndarray, budget: int, task: int) -> np.ndarray:
    """What one task needs most."""
    _check(scores, budget)
    if not 0 <= task < scores.shape[1]:
        raise ValueError(f"expected one of {scores.shape[1]} tasks, counted from 0, got {task}")
    return np.argsort(-scores[:, task], kind="stable")[:budget]


def at_random(scores: np.ndarray, budget: int, rng: np.random.Generator) -> np.ndarray:
    _check(scores, budget)
    return rng.permutation(len(scores))[:budget]


def _check(scores: np.ndarray, budget: int) -> None:
    finite(scores)
    if not 0 < budget <= len(scores):
        raise ValueError(f"a budget lies between 1 and the number of features, {len(scores)}; got {budget}")
