"""OpenVINO: float32, its own default (bfloat16 where the processor has it), and int8 by NNCF's calibration."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from examples.engines import Batch, Make
from examples.engines.exportable import exportable

ISA = "no switch: its oneDNN is built without one"


def variants(model: nn.Module, batches: Sequence[Batch], threads: int, folder: Path) -> dict[str, Make | str]:
    @functools.cache
    def converted() -> Any:
        import openvino

        shapes = [tuple(x.shape) for x in batches[0]]
        return openvino.convert_model(exportable(model), example_input=batches[0], input=shapes)

    def quantized() -> Callable[..., Tensor]:
        import nncf

        nncf.set_log_level(logging.ERROR)
        rows = nncf.Dataset([tuple(x.numpy() for x in batch) for batch in batches])
        return compiled(nncf.quantize(converted(), rows, preset=nncf.QuantizationPreset.MIXED), threads, "f32")

    there = importlib.util.find_spec("nncf") is not None
    return {
        "OpenVINO, float32": lambda: compiled(converted(), threads, "f32"),
        "OpenVINO, as it comes": lambda: compiled(converted(), threads, None),
        "OpenVINO, int8 by NNCF": quantized if there else "not installed: nncf (pip install loka-compile[bench])",
    }


def compiled(model: Any, threads: int, precision: str | None) -> Callable[..., Tensor]:
    """precision: of what is not quantized; None: OpenVINO's choice."""
    import openvino

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if precision is not None:
        hints["INFERENCE_PRECISION_HINT"] = precision
    request = openvino.Core().compile_model(model, "CPU", hints).create_infer_request()

    def call(*inputs: Tensor) -> Tensor:
        results = request.infer([x.numpy() for x in inputs], share_inputs=True)
        return torch.from_numpy(results[0])

    return call
