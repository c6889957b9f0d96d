"""Which of several sources is best, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from examples.audience.quality.result import Quality
from loka_compile.sampling.intervals import Estimate


@dataclass(frozen=True)
class Place:
    """A source's place. best: share of the resamples in which no other source scores higher; rank: 1 is best."""

    source: str
    score: Estimate
    rank: Estimate
    best: float
    flags: tuple[str, ...]


def ranking(sources: Mapping[str, Quality], by: str = "accuracy", level: float = 0.95) -> list[Place]:
    """Places, best first. Sources judged with one `Bootstrap` on the same campaigns are compared draw by draw."""
    if not sources:
        raise ValueError("there are no sources to rank")
    lacking = [name for name, found in sources.items() if by not in found.draws]
    if lacking:
        raise ValueError(f"sources {lacking} have no score {by!r}; they have {sorted(sources[lacking[0]].draws)}")
    counts = {len(found.draws[by]) for found in sources.values()}
    if len(counts) > 1:
        raise ValueError(f"sources must be judged with as many resamples each; got {sorted(counts)}")
    scores = np.stack([found.draws[by] for found in sources.values()])  # [sources, 1 + resamples]
    ranks = 1 + (scores[:, None] < scores[None]).sum(1)
    tail = (1 - level) / 2
    places = []
    for name, found, own in zip(sources, sources.values(), ranks, strict=True):
        low, high = np.quantile(own[1:], [tail, 1 - tail], method="inverted_cdf")
        rank = Estimate(float(own[0]), float(min(low, own[0])), float(max(high, own[0])))
        places.append(Place(name, found.scores[by], rank, float((own[1:] == 1).mean()), found.flags))
    return sorted(places, key=lambda place: (place.rank.value, -place.best))
