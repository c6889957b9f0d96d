"""Every Triton kernel's specimens: the launches that are compiled and counted without a GPU."""

from __future__ import annotations

import importlib
import pkgutil

from loka_compile import kernels
from loka_compile.kernels.launch import Specimen


def specimens(arch: str, name: str = "", module: str = "") -> list[tuple[str, Specimen]]:
    """(module, specimen) of every kernel module that lists some for this chip, or of another module; `name` is a part
    of either's name."""
    ours = sorted(each.name for each in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."))
    found = []
    for path in [module] if module else ours:
        imported, short = importlib.import_module(path), path.rpartition(".")[2]
        if module or hasattr(imported, "specimens"):
            found += [(short, each) for each in imported.specimens(arch) if name in short or name in each.name]
    return found
