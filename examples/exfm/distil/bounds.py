"""What the two theorems of ExFM say, in a form that a convex problem can be held against.

What is public has their claims and not their constants: separate heads transfer less of the teacher's bias (3.1), and
the adapter tracks the drift (3.2). The bounds below are the standard ones for smooth, strongly convex losses ([I]).
"""

from __future__ import annotations

from collections.abc import Sequence


def shared_head_bias(gradient: float, weight: float, mu: float, smoothness: float) -> tuple[float, float]:
    """How far a shared head's optimum is from that of the labels alone, at least and at most (theorem 3.1).

    gradient: norm of the teacher's loss's gradient at the labels' optimum, which is 0 only if the teacher says what the
    labels say; weight: w; mu, smoothness: curvature of either loss, at least and at most. Of h + w h_F the gradient
    there is w times it, and its curvature lies in (1 + w) [mu, smoothness]. A serving head that sees labels alone has
    0.
    """
    pull = weight * gradient / (1 + weight)
    return pull / smoothness, pull / mu


def tracking_bound(start: float, moves: Sequence[float], rate: float, mu: float, smoothness: float) -> list[float]:
    """How far an adapter that takes one step of `rate` a period is from the optimum at most, after each (theorem 3.2).

    start: the distance at first; moves: how far the optimum moves before each step. A step shrinks the distance by rho
    = max(|1 - rate mu|, |1 - rate smoothness|), so it tends to rho / (1 - rho) times the drift. A stale teacher's grows
    with every period that it lags.
    """
    rho = max(abs(1 - rate * mu), abs(1 - rate * smoothness))
    bounds, distance = [], start
    for move in moves:
        distance = rho * (distance + move)
        bounds.append(distance)
    return bounds
