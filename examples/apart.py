"""One model compiled in several ways, for torch 2.11 to 2.14."""

from __future__ import annotations

import inspect
from typing import Any

import torch

RECOMPILE_LIMIT = 64


def _apart() -> dict[str, Any]:
    """From torch 2.13 on each torch.compile counts its own compilations. Before, those of one piece of code count
    together, whatever the backend, and more than 8 run in eager without a word: so here the limit is raised."""
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        return {"isolate_recompiles": True}
    torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, RECOMPILE_LIMIT)
    return {}


APART = _apart()
"""Keyword arguments for torch.compile."""
