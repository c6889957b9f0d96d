"""Labels that came before their example, or after it was forgotten: which of the two it is, time tells."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Orphans:
    """At most `most` labels by their example's id, oldest first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.known: OrderedDict[int, tuple[float, int]] = OrderedDict()  # id: label, when it came

    def __len__(self) -> int:
        return len(self.known)

    def add(self, id: int, label: float, now: int) -> str:
        """One more; what is lost by it, as counters name it: "" is nothing."""
        if id in self.known:
            return "duplicate_label"
        full = len(self.known) >= self.most
        if full:
            self.known.popitem(last=False)
        self.known[id] = (label, now)
        return "label_alone" if full else ""

    def take(self, id: int) -> float | None:
        """The label of an example that is here now; None if it has not come."""
        return self.known.pop(id)[0] if id in self.known else None

    def expire(self, limit: int) -> int:
        """Forget those that came before `limit`; how many."""
        count = 0
        while self.known and next(iter(self.known.values()))[1] < limit:
            self.known.popitem(last=False)
            count += 1
        return count

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is held, to go on from."""
        held = list(self.known.items())
        return {
            "orphan_id": np.array([id for id, _ in held], np.int64),
            "orphan_label": np.array([label for _, (label, _) in held], np.float64),
            "orphan_when": np.array([when for _, (_, when) in held], np.int64),
        }

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """The reverse."""
        columns = zip(arrays["orphan_id"], arrays["orphan_label"], arrays["orphan_when"], strict=True)
        self.known = OrderedDict((int(id), (float(label), int(when))) for id, label, when in columns)
