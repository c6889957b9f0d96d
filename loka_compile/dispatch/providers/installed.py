"""Whether a kernel library is there, without importing it: `import loka_compile` stays light."""

from __future__ import annotations

import functools
import importlib.util


def missing(package: str, extra: str = "") -> list[str]:
    """Empty if the package is installed; else one reason, and what to do where an extra of ours brings it."""
    if _there(package):
        return []
    how = f": pip install loka-compile[{extra}]" if extra else ""
    return [f"{package} is not installed{how}"]


@functools.cache
def _there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
