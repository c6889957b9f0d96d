"""Small convex problems over simplices, many at once.

Letters: B problems, solved all at once, C campaigns, T tags, L categories (T = L + 1, as tag 0 is none). A stack of Q
is [B, T, L] with every Q[b, a] on the simplex.
"""

from __future__ import annotations

import numpy as np

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


def regression(
    design: Array, response: Array, weights: Array, prior: Array, ridge: float, tolerance: float = 1e-9
) -> Array:
    """argmin over Q of sum_k weights_k ||response_k - design_k Q||^2 + ridge ||Q - prior||^2, rows on the simplex.

    design: [C, D]; response: [C, R]; weights: [C]; prior: [D, R], where to start.
    """
    weighted = (weights[:, None] * design).T
    gram, cross = weighted @ design + ridge * np.eye(len(prior)), weighted @ response + ridge * prior
    return least_squares(gram[None], cross[None], prior[None], tolerance)[0]


def fit_margins(mixes: Array, reports: Array, q: Array, rows: Array, iterations: int = 50) -> tuple[Array, Array]:
    """Scales of the table nearest in KL to mixes[k, a] q[a, c] whose margins are mixes[k, :] and reports[k, :].

    Iterative proportional fitting (Deming and Stephan 1940). mixes: [C, T]; reports: [C, L]; q: [T, L]; rows: [C, T],
    where to start. Gives rows [C, T] and columns [C, L]: the table is mixes * q * rows * columns, its row sums exact.
    Its KL divergence is sum mixes log rows + sum reports log columns.
    """
    for _ in range(iterations):
        columns = _ratio(reports, (mixes * rows) @ q)
        sums = columns @ q.T
        error = np.abs(mixes * (rows * sums - 1)).max()
        rows = _ratio(np.ones_like(rows), sums)
        if error <= 1e-6:
            break
    return rows, columns


def likeliest(
    mixes: Array, reports: Array, weights: Array, start: Array, tolerance: float, iterations: int
) -> tuple[Array, list[float], bool]:
    """The Q [T, L] of least sum_k weights[k] KL(table_k | mixes_k times Q).

    table_k is any table with campaign k's two margins. Alternates the best tables (E) and the best Q (M).
    mixes: [C, T]; reports: [C, L]; weights: [C], summing to 1; start: [T, L], positive. Gives Q, minus the objective by
    iteration, and whether Q moved by more than `tolerance` at the end.
    """
    q, rows, trace = start, np.ones(mixes.shape), []
    for _ in range(iterations):
        rows, columns = fit_margins(mixes, reports, q, rows)
        trace.append(-float(weights @ (xlogy(mixes, rows) + xlogy(reports, columns))))
        mass = q * ((weights[:, None] * mixes * rows).T @ columns)
        total = mass.sum(1, keepdims=True)
        new = np.where(total > 0, mass / np.where(total > 0, total, 1), q)
        moved, q = np.abs(new - q).max(), new
        if moved <= tolerance:
            return q, trace, False
    return q, trace, True


def likeliest_mix(counts: Array, errs: Array, rounds: int = 1000) -> Array:
    """How many of each category most likely gave the counts of tags, [B, L]; counts [B, A]; errs [B, A, L]: P(tag |
    category), columns summing to 1. Expectation-maximisation from an even mix (Saerens et al. 2002).

    Stop: no category moves by a millionth of all users.
    """
    total = counts.sum(1, keepdims=True)
    found = np.repeat(total / errs.shape[2], errs.shape[2], axis=1)
    for _ in range(rounds):
        expected = (errs @ found[:, :, None])[:, :, 0]
        new = found * (_ratio(counts, expected)[:, None] @ errs)[:, 0]
        moved, found = np.abs(new - found), new
        if (moved <= 1e-6 * total).all():
            break
    return found


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
