"""A site's sizes as numbers, for timing it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    batch: int
    M: int
    N: int
    K: int

    @property
    def lhs(self) -> int:
        """Elements of the left operand."""
        return self.batch * self.M * self.K

    @property
    def rhs(self) -> int:
        return self.batch * self.K * self.N

    @property
    def out(self) -> int:
        return self.batch * self.M * self.N

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.M * self.N * self.K
