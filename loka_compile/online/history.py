"""The history of a session: events, and the errors that lowered sites were seen with over time."""

from __future__ import annotations

from collections import deque
from typing import Any

MOST = 400
"""Events, and sightings of one site, that are kept: the latest."""


class History:
    """Times are counts of calls since there was a plan; before it, of measured ones."""

    def __init__(self) -> None:
        self.events: deque[tuple[int, str, str]] = deque(maxlen=MOST)
        self.seen: dict[str, deque[tuple[int, float]]] = {}

    def note(self, calls: int, kind: str, text: str) -> None:
        """kind: planned, grown, started over, demoted."""
        self.events.append((calls, kind, text))

    def saw(self, calls: int, site: str, mere: float) -> None:
        """A lowered site was measured again, with this error."""
        self.seen.setdefault(site, deque(maxlen=MOST)).append((calls, mere))

    def as_dict(self) -> dict[str, Any]:
        """Plain data; it may be written by other threads meanwhile."""
        return {
            "events": [list(each) for each in tuple(self.events)],
            "seen": {site: [list(each) for each in tuple(found)] for site, found in tuple(self.seen.items())},
        }
