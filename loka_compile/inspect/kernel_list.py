"""Every Triton kernel's specimens: the launches that are compiled and counted without a GPU."""

from __future__ import annotations

import importlib
import pkgutil

from loka_compile import kernels
from loka_compile.kernels.launch import Specimen


def specimens(arch: str, name: str = "") -> list[tuple[str, Specimen]]:
    """(module, specimen) of every kernel module that lists some for this chip; `name` is a part of either's name."""
    found = []
    for each in sorted(module.name for module in pkgutil.iter_modules(kernels.__path__)):
        module = importlib.import_module(f"{kernels.__name__}.{each}")
        listed = module.specimens(arch) if hasattr(module, "specimens") else []
        found += [(each, specimen) for specimen in listed if name in each or name in specimen.name]
    return found
