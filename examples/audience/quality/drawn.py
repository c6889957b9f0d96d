"""Campaigns drawn user by user from a source that is known: for benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from examples.audience.quality.campaigns import Campaigns
from examples.audience.quality.result import bayes

TRUTH = np.array([[0.45, 0.35, 0.2], [0.8, 0.15, 0.05], [0.15, 0.7, 0.15], [0.1, 0.2, 0.7]])
"""P(true category | tag): untagged, and three tags that are right for 80, 70 and 70 %."""
ERRORS = np.array([[0.25, 0.6, 0.1, 0.05], [0.2, 0.1, 0.6, 0.1], [0.3, 0.05, 0.1, 0.55]])
"""P(tag | true category): untagged, and the three tags."""


@dataclass(frozen=True)
class Setting:
    """campaigns: how many; users: in each; overlap: how alike their mixes are, the Dirichlet's parameter;
    panel: users whose truth the agency knows, its noise; holds: what is the same in all campaigns, `tags`, `errors` or
    `neither`."""

    campaigns: int = 40
    users: int = 5000
    overlap: float = 0.3
    panel: int = 1000
    holds: str = "tags"


def drawn(setting: Setting, q: np.ndarray, rng: np.random.Generator) -> Campaigns:
    """Campaigns that have P(truth | tag) in common."""
    counts, reports = [], []
    for _ in range(setting.campaigns):
        mix = rng.dirichlet(np.full(len(q), setting.overlap))
        counts.append(rng.multinomial(setting.users, mix))
        panel = rng.multinomial(setting.panel, counts[-1] / setting.users)
        reports.append(sum(rng.multinomial(n, row) for n, row in zip(panel, q, strict=True)) / setting.panel)
    return Campaigns.of(counts, reports, np.full(setting.campaigns, setting.panel))


def made(setting: Setting, rng: np.random.Generator) -> tuple[Campaigns, np.ndarray]:
    """Campaigns, and the Q that they have together."""
    if setting.holds == "tags":
        return drawn(setting, TRUTH, rng), TRUTH
    if setting.holds == "neither":  # two Q, each in half of the campaigns
        half = replace(setting, campaigns=setting.campaigns // 2)
        parts, qs = [], (TRUTH, TRUTH[[0, 2, 1, 3]])
        for q in qs:
            parts.append(drawn(half, q, rng))
        users = [part.sizes @ part.mixes for part in parts]
        joint = sum(own[:, None] * q for own, q in zip(users, qs, strict=True))
        return Campaigns(*map(np.concatenate, zip(*(vars(part).values() for part in parts), strict=True))), (
            joint / joint.sum(1, keepdims=True)
        )
    counts, reports, people = [], [], np.zeros(len(ERRORS))
    for _ in range(setting.campaigns):
        true = rng.multinomial(setting.users, rng.dirichlet(np.full(len(ERRORS), setting.overlap)))
        counts.append(sum(rng.multinomial(n, row) for n, row in zip(true, ERRORS, strict=True)))
        reports.append(rng.multinomial(setting.panel, true / setting.users) / setting.panel)
        people += true
    return Campaigns.of(counts, reports, np.full(setting.campaigns, setting.panel)), bayes(ERRORS.T, people)
