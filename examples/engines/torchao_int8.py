"""torchao's int8 dynamic quantization under Inductor, as it comes and with Inductor's freezing."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from examples.engines import Batch, Make

ISA = "PyTorch's kernels: ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2"


def variants(model: nn.Module, batches: Sequence[Batch], threads: int, folder: Path) -> dict[str, Make]:
    def made(**options: object) -> Callable[..., Tensor]:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantized = copy.deepcopy(model)
        quantize_(quantized, Int8DynamicActivationInt8WeightConfig())
        return torch.compile(quantized, isolate_recompiles=True, **options)

    return {
        "torchao int8": made,
        "torchao int8, freezing": functools.partial(made, options={"freezing": True}),
    }
