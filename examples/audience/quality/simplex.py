"""Small convex problems over simplices, many at once.

Letters: B problems, solved all at once, C campaigns, T tags, L categories (T = L + 1, as tag 0 is none). A stack of Q
is [B, T, L] with every Q[b, a] on the simplex.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loka_compile.sampling.intervals import Array


def project(x: Array) -> Array:
    """The nearest point of the simplex to each x[..., :], exactly (Held et al. 1974; Duchi et al. 2008, by sorting)."""
    descending = -np.sort(-x, axis=-1)
    shift = (np.cumsum(descending, axis=-1) - 1) / np.arange(1, x.shape[-1] + 1)
    kept = np.count_nonzero(descending > shift, axis=-1, keepdims=True)
    return np.maximum(x - np.take_along_axis(shift, kept - 1, axis=-1), 0)


def least_squares(gram: Array, cross: Array, start: Array, tolerance: float = 1e-9, iterations: int = 5000) -> Array:
    """argmin over Q of tr(Q' gram Q) / 2 - tr(Q' cross), rows on the simplex.

    gram: [B, T, T], positive semidefinite; cross, start: [B, T, L]. FISTA (Beck and Teboulle 2009) with restarts
    (O'Donoghue and Candes 2015); stops once no entry of any Q moves by more than `tolerance`.
    """
    step = 1 / np.linalg.eigvalsh(gram)[:, -1, None, None]
    q, ahead, momentum = start, start, np.ones((len(start), 1, 1))
    for _ in range(iterations):
        new = project(ahead - step * (gram @ ahead - cross))
        moved = new - q
        momentum[((ahead - new) * moved).sum((1, 2)) > 0] = 1
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead, q, momentum = new + (momentum - 1) / following * moved, new, following
        if np.abs(moved).max() <= tolerance:
            break
    return q


def fit_margins(
    mixes: Array, reports: Array, q: Array, rows: Array, used: NDArray[np.bool_], iterations: int = 50
) -> tuple[Array, Array]:
    """Scales of the table nearest in KL to mixes[k, a] Q[a, c] whose margins are mixes[k, :] and reports[k, :].

    Iterative proportional fitting (Deming and Stephan 1940). mixes: [C, T]; reports: [C, L]; q: [B, T, L];
    rows: [B, C, T], where to start; used: [B, C], the campaigns to fit, as Q may rule others out. Gives rows [B, C, T]
    and columns [B, C, L]: the table is mixes * Q * rows * columns, its row sums exact. Its KL divergence is
    sum mixes log rows + sum reports log columns.
    """
    transposed = q.transpose(0, 2, 1)
    for _ in range(iterations):
        columns = _ratio(reports, (mixes * rows) @ q)
        sums = columns @ transposed
        error = np.abs(mixes * (rows * sums - 1) * used[:, :, None]).max()
        rows = np.where(used[:, :, None], _ratio(np.ones_like(rows), sums), 1)
        if error <= 1e-6:
            break
    return rows, columns


def likeliest(
    mixes: Array, reports: Array, weights: Array, start: Array, tolerance: float, iterations: int
) -> tuple[Array, list[float], int]:
    """For each weighting b of the campaigns, the Q of least sum_k weights[b, k] KL(table_k | mixes_k times Q).

    table_k is any table with campaign k's two margins. Alternates the best tables (E) and the best Q (M).
    mixes: [C, T]; reports: [C, L]; weights: [B, C], rows summing to 1; start: [T, L], positive. Gives Q [B, T, L],
    minus the objective of problem 0 by iteration, and how many problems moved by more than `tolerance` at the end.
    """
    q = np.repeat(start[None], len(weights), axis=0)
    rows, tags, trace = np.ones((*weights.shape, len(start))), weights @ mixes, []
    active = np.arange(len(weights))  # the problems that still move
    for _ in range(iterations):
        rows[active], columns = fit_margins(mixes, reports, q[active], rows[active], weights[active] > 0)
        if active[0] == 0:
            trace.append(-float(weights[0] @ (xlogy(mixes, rows[0]) + xlogy(reports, columns[0]))))
        scaled = weights[active, :, None] * mixes * rows[active]
        mass = q[active] * (scaled.transpose(0, 2, 1) @ columns)
        total = mass.sum(2, keepdims=True)
        seen = (tags[active, :, None] > 0) & (total > 0)
        new = np.where(seen, mass / np.where(seen, total, 1), q[active])
        moved = np.abs(new - q[active]).max((1, 2))
        q[active] = new
        active = active[moved > tolerance]
        if len(active) == 0:
            break
    return q, trace, len(active)


def unseen_directions(mixes: Array, weights: Array, tolerance: float) -> tuple[int, Array]:
    """Rank of the weighted mixes [C, T], and an orthonormal basis [T - rank, T] of what they leave open."""
    _, values, directions = np.linalg.svd(np.sqrt(weights)[:, None] * mixes, full_matrices=True)
    rank = int(np.count_nonzero(values > tolerance * values[0]))
    return rank, directions[rank:]


def tag_scores(tags: Array, base: Array, q: Array) -> dict[str, Array]:
    """Accuracy, lift, coverage and bits, [B] each. tags: [B, T]; base: [B, L]; q: [B, T, L]."""
    tagged = np.maximum(1 - tags[:, 0], 1e-12)
    accuracy = (tags[:, 1:] * np.diagonal(q[:, 1:], axis1=1, axis2=2)).sum(1) / tagged
    chance = np.maximum((tags[:, 1:] * base).sum(1) / tagged, 1e-12)
    joint = tags[:, :, None] * q
    bits = np.maximum(xlogy(joint, q).sum(1) - xlogy(joint.sum(1), joint.sum(1)), 0) / np.log(2)
    return {"accuracy": accuracy, "lift": accuracy / chance, "coverage": 1 - tags[:, 0], "bits": bits}


def xlogy(x: Array, y: Array) -> Array:
    """sum x log y over the last axis, 0 where x is 0."""
    return (x * np.log(np.where(x > 0, y, 1))).sum(-1)


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0: a cell that Q rules out stays empty."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b > 1e-300)
