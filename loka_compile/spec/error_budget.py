"""The error budget of one site: how far a recipe's product may be from the exact one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorBudget:
    """max_mere: highest mean relative error, a fraction. min_sqnr_db: lowest signal to noise, in decibels. What is not
    a number is beyond both."""

    max_mere: float = 0.2
    min_sqnr_db: float = 20.0

    def holds(self, mere: float, sqnr_db: float) -> bool:
        return mere <= self.max_mere and sqnr_db >= self.min_sqnr_db

    def missed(self, mere: float, sqnr_db: float, where: str = "") -> tuple[str, ...]:
        """Which of the two an error misses, in words; `where` says of what, such as " on its 40 rows"."""
        found = []
        if not mere <= self.max_mere:
            found.append(f"MERE {mere:.3g}{where}, budget {self.max_mere:g}")
        if not sqnr_db >= self.min_sqnr_db:
            found.append(f"SQNR {sqnr_db:.1f} dB{where}, budget {self.min_sqnr_db:g}")
        return tuple(found)


DEFAULT = ErrorBudget()
"""The budget unless the options say otherwise."""
