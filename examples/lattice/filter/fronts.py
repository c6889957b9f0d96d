"""Non-dominated sorting: which features no other beats on every task, which only those do, and so on.

Feature k dominates feature i if it is at least as important for every task and more for one. Front 0 is dominated by
nobody, front r by front r - 1 and nobody beyond. With sigma importances are rounded to multiples of it first [I]: with
many tasks nearly nothing dominates, as noise decides some task. The plain tolerance, f_k >= f_i - sigma, would not do:
it has circles (a test shows one).
"""

from __future__ import annotations

import importlib.util

import numpy as np

BLOCK = 256


def fronts(scores: np.ndarray, sigma: np.ndarray | float = 0.0, library: str = "auto") -> np.ndarray:
    """(n,) the front of each of n features; scores (n, m), larger is better.

    sigma: one number, or one a task (m,); 0 for exact dominance. library: moocore or numpy; auto takes moocore's if it
    is installed (three times as fast with many fronts), numpy's otherwise.
    """
    scores = np.asarray(scores, dtype=np.float64)
    finite(scores)
    sigma = np.broadcast_to(np.asarray(sigma, dtype=np.float64), scores.shape[1:])
    if not (sigma >= 0).all():  # nan is not, and would pass for 0; inf is: of that task nothing is known
        raise ValueError(f"sigma is a number and not negative, got {sigma}")
    steps = np.where(sigma > 0, sigma, 1.0)
    rounded = np.where(sigma > 0, np.round(scores / steps), scores)
    if library == "auto":
        library = "moocore" if importlib.util.find_spec("moocore") else "numpy"
    return {"moocore": _moocore, "numpy": _numpy}[library](rounded)


def finite(scores: np.ndarray) -> None:
    """Whoever chooses by scores asks first: nan would be last in one order, first in another."""
    if scores.ndim != 2:
        raise ValueError(f"expected scores of (features, tasks), got shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"expected finite scores, got {(~np.isfinite(scores)).sum()} that are nan or inf")


def _moocore(scores: np.ndarray) -> np.ndarray:
    import moocore

    if not len(scores):
        return np.zeros(0, dtype=np.int64)
    return np.asarray(moocore.pareto_rank(scores, maximise=True), dtype=np.int64)


def _numpy(scores: np.ndarray) -> np.ndarray:
    """A feature's front is the length of the longest chain of features that dominate one another up to it.

    Sorted by the sum of their places, whoever dominates comes first; so one walk through blocks is enough, with one
    comparison a task for each pair. Equal features count once: among different ones >= on all tasks is dominance.
    """
    different, back = np.unique(scores, axis=0, return_inverse=True)
    columns = [np.unique(column, return_inverse=True)[1].astype(np.int32) for column in different.T]
    places = np.stack(columns, axis=1) if columns else np.zeros((len(different), 0), dtype=np.int32)
    order = np.argsort(-places.sum(axis=1, dtype=np.int64), kind="stable")
    by_task = np.ascontiguousarray(places[order].T)
    if len(different) <= np.iinfo(np.uint16).max:
        by_task = by_task.astype(np.uint16)  # half the memory to walk through
    rank = np.zeros(len(different), dtype=np.int64)
    for start in range(0, len(different), BLOCK):
        end = min(start + BLOCK, len(different))
        above = np.ones((end - start, end), dtype=bool)  # [i, k]: k is at least as good as i
        for task in by_task:
            above &= task[None, :end] >= task[start:end, None]
        rank[start:end] = (above[:, :start] * (rank[:start] + 1)).max(axis=1, initial=0)
        for row in range(1, end - start):
            inside = above[row, start : start + row]
            if inside.any():
                rank[start + row] = max(rank[start + row], rank[start : start + row][inside].max() + 1)
    found = np.empty(len(different), dtype=np.int64)
    found[order] = rank
    return found[back.reshape(-1)]
