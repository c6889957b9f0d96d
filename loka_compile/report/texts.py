"""A table of texts: what a report says thousands of times is stored once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


class Texts:
    """Gives every text a number; `all` holds them in that order."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self._places.setdefault(text, len(self._places))

    def of(self, texts: Iterable[str]) -> list[int]:
        return [self(text) for text in texts]

    @property
    def all(self) -> list[str]:
        return list(self._places)


def number(value: float | None) -> float | str | None:
    """Six digits; what JSON has no number for is a text: inf, -inf, nan."""
    if value is None:
        return None
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)


def finite(value: float | str | None) -> float | None:
    """Of what `number` gave: it, where it can be added and drawn; None where it is not known, infinite or no number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {key: number(value) if isinstance(value, float) else value for key, value in values.items()}
