"""Made-up rows to sample: features that depend on each other, and values that depend on them."""

from __future__ import annotations

import numpy as np


def population(rows=6000, seed=0):
    """(features, values): a country that decides language, device and the values; noise beside them; rare countries."""
    rng = np.random.default_rng(seed)
    shares = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.015, 0.008, 0.007, 0.006, 0.004])
    country = rng.choice(len(shares), rows, p=shares / shares.sum())
    language = np.where(rng.random(rows) < 0.85, country % 4, rng.integers(0, 4, rows))
    device = np.where(rng.random(rows) < 0.8, country % 3, rng.integers(0, 3, rows))
    features = {"noise": rng.integers(0, 5, rows), "language": language, "country": country, "device": device}
    values = 1 + 0.3 * country + 0.5 * language + rng.gamma(2.0, 1.0, rows)
    return features, values
