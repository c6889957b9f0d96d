"""ONNX Runtime on the exported model: float32, and its dynamic quantization of products to int8.

Weights have one scale a column. `reduce_range` gives them 7 bits, which processors without VNNI need to be exact.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from examples.engines import Batch, Make
from examples.engines.exportable import exportable

ISA = "no switch: MLAS asks the processor itself"


def variants(model: nn.Module, batches: Sequence[Batch], threads: int, folder: Path) -> dict[str, Make]:
    @functools.cache
    def exported() -> Path:
        return exported_model(exportable(model), batches[0], folder)

    def quantized(reduce_range: bool) -> Callable[..., Tensor]:
        from onnxruntime.quantization import quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared, path = folder / "prepared.onnx", folder / f"int8-{reduce_range}.onnx"
        quant_pre_process(exported(), prepared, skip_symbolic_shape=True)
        quantize_dynamic(prepared, path, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=reduce_range)
        return session(path, threads)

    return {
        "ONNX Runtime, float32": lambda: session(exported(), threads),
        "ONNX Runtime, int8": functools.partial(quantized, False),
        "ONNX Runtime, int8, reduce_range": functools.partial(quantized, True),
    }


def exported_model(model: nn.Module, batch: Batch, folder: Path) -> Path:
    """The model as a file, its batch's size fixed as all others have it; by torch.export, else by tracing."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    path, errors = folder / "model.onnx", []
    for dynamo in (True, False):
        try:
            torch.onnx.export(model, batch, path, dynamo=dynamo, external_data=False, verbose=False)
            return path
        except Exception as error:  # each exporter has errors of its own
            errors.append(f"dynamo={dynamo}: {type(error).__name__} {error}")
    raise RuntimeError("; ".join(errors))


def session(path: Path, threads: int) -> Callable[..., Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    made = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in made.get_inputs()]

    def call(*inputs: Tensor) -> Tensor:
        [out] = made.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        return torch.from_numpy(out)

    return call
