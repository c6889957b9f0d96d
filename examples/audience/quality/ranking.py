"""Which of several sources is best, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from examples.audience.quality.result import Quality
from loka_compile.sampling.intervals import Estimate


@dataclass(frozen=True)
class Place:
    """A source's place. best: share of the resamples in which no other source scores higher; rank: 1 is best.

    sure: whether the campaigns bear out what the score rests on. If not, `rank` is all that the scores' intervals
    allow, and nothing is known of `best`, None.
    """

    source: str
    score: Estimate
    rank: Estimate
    best: float | None
    flags: tuple[str, ...]
    sure: bool = True


def ranking(sources: Mapping[str, Quality], by: str = "accuracy", level: float = 0.95) -> list[Place]:
    """Places, best first, then those that are not sure. Sources judged with one `Bootstrap` on the same campaigns are
    compared draw by draw, and by their intervals where either is not sure."""
    if not sources:
        raise ValueError("there are no sources to rank")
    lacking = [name for name, found in sources.items() if by not in found.draws]
    if lacking:
        raise ValueError(f"sources {lacking} have no score {by!r}; they have {sorted(sources[lacking[0]].draws)}")
    counts = {len(found.draws[by]) for found in sources.values()}
    if len(counts) > 1:
        raise ValueError(f"sources must be judged with as many resamples each; got {sorted(counts)}")
    scores = np.stack([found.draws[by] for found in sources.values()])  # [sources, 1 + resamples]
    sure = np.array([found.sure for found in sources.values()])
    ends = np.array(
        [[found.scores[by].value, found.scores[by].low, found.scores[by].high] for found in sources.values()]
    )
    tail = (1 - level) / 2
    places = []
    for i, (name, found) in enumerate(sources.items()):
        open_to = ~(sure & sure[i])
        open_to[i] = False
        compared = 1 + (scores[i] < scores[~open_to]).sum(0)
        low, high = np.quantile(compared[1:], [tail, 1 - tail], method="inverted_cdf")
        value = compared[0] + (ends[i, 0] < ends[open_to, 0]).sum()
        low = min(low, compared[0]) + (ends[i, 2] < ends[open_to, 1]).sum()
        high = max(high, compared[0]) + (ends[i, 1] < ends[open_to, 2]).sum()
        above = not open_to.any() or ends[i, 1] >= ends[open_to, 2].max()  # nobody whose score is open can be better
        best = float((compared[1:] == 1).mean()) if sure[i] and above else None
        rank = Estimate(float(value), float(low), float(high))
        places.append(Place(name, found.scores[by], rank, best, found.flags, bool(sure[i])))
    return sorted(places, key=lambda place: (not place.sure, place.rank.value, -(place.best or 0)))
