"""Measured times, kept on disk for this machine, thread count and torch version.

One that was measured while the machine was busy with other work (steady.py) serves this process and is not written.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from loka_compile import compat
from loka_compile.dispatch.steady import is_noisy
from loka_compile.kernels.gemm import int_mm
from loka_compile.kernels.providers import PROVIDERS
from loka_compile.kernels.quantize import quantize as quantization
from loka_compile.spec.processor import processor

MEASURING = ("timing.py", "operands.py", "loops.py", "steady.py")
"""Our files that a time depends on, beside the kernels' own: how it is taken, and of which loops."""


def cache_dir() -> Path:
    """The folder of measured times: $LOKA_CACHE_DIR, else ~/.cache/loka."""
    return Path(os.environ.get("LOKA_CACHE_DIR") or Path.home() / ".cache" / "loka")


def key(*parts: Any) -> str:
    return " ".join(str(part) for part in parts)


@functools.cache
def times() -> dict[str, float]:
    """All that are known, by key; `note` adds one, `save` writes them."""
    noisy().clear()
    return _read()


def recall(name: str) -> float | None:
    return times().get(name)


@functools.cache
def noisy() -> set[str]:
    """The keys of those that were measured while the machine was busy."""
    return set()


def note(name: str, value: float, while_busy: bool = False) -> None:
    """Add one, without saving."""
    times()[name] = value
    (noisy().add if while_busy else noisy().discard)(name)


def remember(name: str, value: float, while_busy: bool = False) -> None:
    note(name, float(value), while_busy or is_noisy(value))
    save()


def remembered(name: str, measure: Callable[[], float]) -> float:
    """Measured once."""
    if name not in times():
        with measuring():
            us = measure()
        remember(name, us)
    return times()[name]


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """Outside of the compilation in progress; leaves the random state as it is."""
    with compat.outside_compilation(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield


# ---------------------------------------------------------------- the file


@functools.cache
def _file() -> Path:
    """The file of the times that can be compared with those taken now: same processor with its instruction sets, same
    number of cores and threads, same torch version, same source of the kernels and of the timing."""
    providers = [sys.modules[type(provider).__module__] for provider in PROVIDERS.values()]
    sources = [Path(str(module.__file__)) for module in (int_mm, quantization, *providers)]
    sources += [Path(__file__).with_name(name) for name in MEASURING]
    kernels = b"".join(source.read_bytes() for source in sources)
    machine = f"{processor()} {os.cpu_count()} {torch.get_num_threads()} {torch.__version__}".encode() + kernels
    return cache_dir() / f"times-{hashlib.sha256(machine).hexdigest()[:16]}.json"


def _read() -> dict[str, float]:
    try:
        found = {str(k): float(v) for k, v in json.loads(_file().read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return {}  # measured anew
    return {k: v for k, v in found.items() if 0 <= v < float("inf")}


def save() -> None:
    """Writes the whole file at once, with what other processes wrote meanwhile. So none of them reads half a file."""
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=_file().parent, delete=False) as scratch:
            steady = {name: value for name, value in times().items() if name not in noisy()}
            json.dump({**_read(), **steady}, scratch, indent=0, sort_keys=True)
        os.replace(scratch.name, _file())
    except OSError:
        pass  # a read-only home: the times last as long as the process
