"""Campaigns drawn user by user from a known Q."""

import numpy as np

from examples.audience.quality.campaigns import Campaigns

TRUTH = np.array([[0.4, 0.3, 0.3], [0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.05, 0.05, 0.9]])
ERRORS = np.array([[0.25, 0.6, 0.1, 0.05], [0.2, 0.1, 0.6, 0.1], [0.3, 0.05, 0.1, 0.55]])


def simulate(truth, campaigns, size, seed, spread=1.0):
    """Users by tag, and the shares of their true categories, drawn user by user."""
    rng = np.random.default_rng(seed)
    counts = np.array([rng.multinomial(size, rng.dirichlet(np.full(len(truth), spread))) for _ in range(campaigns)])
    reports = np.array([sum(rng.multinomial(n, q) for n, q in zip(row, truth, strict=True)) for row in counts])
    return Campaigns.of(counts, reports / size)


def random_truth(tags, seed):
    return np.random.default_rng(seed).dirichlet(np.full(tags - 1, 0.7), size=tags)


def err(truth, campaigns, users, panel, seed, spread=0.6):
    """Campaigns whose source errs alike: truth [L, T] is P(tag | category); `panel` of the users have a known truth."""
    rng = np.random.default_rng(seed)
    true = np.array([rng.multinomial(users, rng.dirichlet(np.full(len(truth), spread))) for _ in range(campaigns)])
    counts = np.array([sum(rng.multinomial(n, q) for n, q in zip(row, truth, strict=True)) for row in true])
    reports = np.array([rng.multivariate_hypergeometric(row, panel) for row in true])
    return Campaigns.of(counts, reports / panel, np.full(campaigns, panel))


def guessing(right, untagged=0.2):
    """P(tag | category) of a source that guesses one of three categories right so often, and else one of the others."""
    guesses = np.full((3, 3), (1 - right) / 2) + np.eye(3) * (1.5 * right - 0.5)
    return np.hstack([np.full((3, 1), untagged), (1 - untagged) * guesses])


def joined(parts):
    names = ("mixes", "reports", "sizes", "users")
    return Campaigns(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
