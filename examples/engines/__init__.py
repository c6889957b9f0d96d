"""Other engines that run a PyTorch model on a CPU: a file each, one table of all.

An engine is a function `variants(model, batches, threads, folder)` of its file. It returns, by name, functions that
make a callable, which takes what the model takes and returns its output, one tensor. batches: inputs of the size that
will be asked for, to export and to calibrate with. folder: an empty one for its files. One that cannot be made raises
an error, whose words are the reason.

`ISA` of a file says which environment variables hold the engine to AVX2, or that none does.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from torch import Tensor, nn

Batch = tuple[Tensor, ...]
Make = Callable[[], Callable[..., Tensor]]

NO_SWITCH = "no switch"
"""What the ISA of a file begins with whose engine asks the processor itself."""

ENGINES: dict[str, tuple[str, ...]] = {
    "torchao_int8": ("torchao",),
    "pytorch_dynamic": (),
    "onnx_runtime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino_runtime": ("openvino",),
}
"""By file, the packages that it needs."""


def makers(
    engine: str, model: nn.Module, batches: Sequence[Batch], threads: int, folder: Path
) -> dict[str, Make | str]:
    """By variant what makes it, or why nothing does."""
    missing = [package for package in ENGINES[engine] if importlib.util.find_spec(package) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)} (pip install loka-compile[bench])"
        return {engine.replace("_", " "): reason}
    place = folder / engine
    place.mkdir(exist_ok=True)
    module = importlib.import_module(f"examples.engines.{engine}")
    made: dict[str, Make | str] = module.variants(model, batches, threads, place)
    return made


def reason_of(error: BaseException) -> str:
    """An error as one short line of a table."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:160]}{'…' * (len(words) > 160)}"


def not_held(engine: str) -> str:
    """Where PyTorch is held to AVX2 and the engine cannot be, why its time is that of the processor as it is."""
    held = "AVX2" in os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    isa = str(importlib.import_module(f"examples.engines.{engine}").ISA)
    return f"not held to AVX2: {isa}" if held and isa.startswith(NO_SWITCH) else ""


def versions(engine: str) -> dict[str, str | None]:
    there = {package: importlib.util.find_spec(package) is not None for package in ENGINES[engine]}
    return {package: metadata.version(package) if known else None for package, known in there.items()}


class Late:
    """What is made at its first call."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._made: Callable[..., Tensor] | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self._made is None:
            self._made = self._make()
        return self._made(*inputs)
