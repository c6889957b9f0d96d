"""What happened, by name. Every fault that the system survives is one of these: nothing is dropped in silence."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Mapping

NAMED = 100
"""Most recent faults that are kept in words; the counts are complete."""


class Counters:
    """Counts by name, and the last NAMED faults in words. They are saved with a checkpoint, so a restart goes on
    counting."""

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self.counts = Counter[str](counts or {})
        self.named: deque[str] = deque(maxlen=NAMED)

    def add(self, name: str, count: int = 1, words: str = "") -> None:
        """`count` more of these; words: which one it was."""
        if count:
            self.counts[name] += int(count)
            if words:
                self.named.append(f"{name}: {words}")

    def take_in(self, other: Counters) -> None:
        """What another one counted."""
        self.counts.update(other.counts)
        self.named.extend(other.named)

    def taken(self) -> Counters:
        """Everything so far, and begin anew."""
        found = Counters(self.counts)
        found.named.extend(self.named)
        self.counts.clear()
        self.named.clear()
        return found

    def __getitem__(self, name: str) -> int:
        return self.counts[name]

    def to_json(self) -> str:
        return json.dumps({"counts": dict(sorted(self.counts.items())), "named": list(self.named)})

    @classmethod
    def from_json(cls, text: str) -> Counters:
        body = json.loads(text)
        found = cls(body["counts"])
        found.named.extend(body["named"])
        return found
