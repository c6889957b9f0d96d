"""PyTorch's own dynamic quantization (torch.ao.quantization.quantize_dynamic), by its engines for x86.

`x86` asks FBGEMM, or oneDNN where the processor has VNNI; `onednn` asks oneDNN. Weights have one scale, as PyTorch's
default has it, or one a column; both are shown.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.ao import quantization

from examples.engines import Batch, Make

ISA = "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 FBGEMM_ENABLE_INSTRUCTIONS=AVX2"


def variants(model: nn.Module, batches: Sequence[Batch], threads: int, folder: Path) -> dict[str, Make | str]:
    made: dict[str, Make | str] = {}
    for engine in ("x86", "onednn"):
        for columns, config in (
            ("", quantization.default_dynamic_qconfig),
            (", by columns", quantization.per_channel_dynamic_qconfig),
        ):
            name = f"PyTorch dynamic, {engine}{columns}"
            known = engine in torch.backends.quantized.supported_engines
            make = functools.partial(_quantized, model, engine, config)
            made[name] = make if known else f"this PyTorch has no engine {engine}"
    return made


def _quantized(model: nn.Module, engine: str, config: quantization.QConfig) -> Callable[..., Tensor]:
    """Which engine it is shows while weights are packed."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        with warnings.catch_warnings(action="ignore"):  # that it will be torchao's one day
            return quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear: config})
    finally:
        torch.backends.quantized.engine = before
