"""A graph that is compiled ahead of time and saved; where it is loaded, this module brings the operators it calls."""

from __future__ import annotations

import loka_compile.passes  # noqa: F401  # the operators: every kernel that a pass puts into a graph
from loka_compile.compat.ahead import Serializable


class AheadOfTime(Serializable):
    """Saved under this name (torch._dynamo.aot_compile)."""
