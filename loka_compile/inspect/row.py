"""One site of an explanation, and how it ended."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["lowered", "kept", "refused", "missing", "gone", "pending", "absent", "planned"]
"""lowered: the planned kernel is in the generated code. kept: the plan keeps the site. refused: the plan lowers the
site, and a pass left it alone. missing: the site was lowered, and the generated code lacks the kernel. gone: the site
was rewritten, then merged with an equal GEMM or found unused. pending: the site is in a backward that is not compiled
yet. absent: the plan has the site, and no graph compiled so far does. planned: read from a plan alone."""


@dataclass(frozen=True)
class Row:
    """One site.

    runs_as: the kernel that is really in the generated code, "" if there is none of loka's. mere, sqnr_db, median_rel:
    errors of the chosen candidate, None for a kept site or where nothing is known. time_before_us, time_after_us: of
    the GEMM as the model has it and as chosen, casts included; None where another size was timed. graphs: names of the
    graphs it was found in. ranges: all choices by rows, where they depend on the batch. timed_elsewhere: at which size
    it was timed, where that is not this shape.
    """

    key: str
    role: str
    shape: str
    recipe: str
    provider: str
    runs_as: str
    outcome: Outcome
    mere: float | None
    sqnr_db: float | None
    median_rel: float | None
    time_before_us: float | None
    time_after_us: float | None
    time_source: str
    reason: str
    rejected: tuple[tuple[str, str], ...] = ()
    graphs: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    timed_elsewhere: str = ""

    @property
    def lowered(self) -> bool:
        """Planned, and seen in the generated code."""
        return self.outcome == "lowered"

    @property
    def speedup(self) -> float | None:
        if not self.time_before_us or not self.time_after_us:
            return None
        return self.time_before_us / self.time_after_us

    def as_dict(self) -> dict[str, Any]:
        """With the derived values; numbers that JSON has not as strings."""
        values = {**asdict(self), "lowered": self.lowered, "speedup": self.speedup}
        return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
