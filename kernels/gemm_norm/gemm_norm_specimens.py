"""Launches of loka::gemm_norm at the field's shapes, which are compiled and counted without a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from loka_compile.kernels.gemm_norm.epilogue import Epilogue, GemmNorm, empty_outputs
from loka_compile.kernels.gemm_norm.gemm_norm_launch import launch
from loka_compile.kernels.launch import Specimen, moved
from loka_compile.kernels.norms import RowNorm


def specimens(arch: str) -> list[Specimen]:
    """At the field's shapes, against the sequence of GEMM, norm with activation, and quantization."""
    fp8 = torch.float8_e4m3fnuz if arch == "gfx942" else torch.float8_e4m3fn

    def specimen(
        norm: str,
        activation: str,
        m: int,
        n: int,
        k: int,
        block: int = 0,
        weights: int = 0,
        save: bool = False,
        of: torch.dtype = fp8,
        dtype: torch.dtype = fp8,
        biased: bool = False,
        added: bool = False,
    ) -> Specimen:
        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        a, b = empty(m, k, dtype=of), empty(n, k, dtype=of)
        a_scale, b_scale = (empty(m, 1), empty(n, 1)) if of == fp8 else (None, None)
        weight, shift = (empty(n, dtype=torch.bfloat16) if weights > i else None for i in (0, 1))
        bias = empty(n, dtype=torch.bfloat16) if biased else None
        residual = empty(m, n, dtype=torch.bfloat16) if added else None
        row = RowNorm(norm, block, activation, dtype, 1e-6, save)
        epilogue = Epilogue(bias, residual, weight, shift, None, row)
        call = GemmNorm(a, a_scale, b, b_scale, epilogue)
        outputs = empty_outputs(call)
        made = launch(call, outputs, arch)
        product, size = 2 * m * n, moved(outputs[0], outputs[1])
        behind = (2 + added + (added and save)) * product
        unfused = [("gemm", made.flops, moved(a, a_scale, b, b_scale) + product), ("norm", 0, behind)]
        if dtype == fp8:
            unfused.append(("quantize", 0, product + size))
        words = [
            *["bias"] * biased,
            *["residual"] * added,
            norm + (f"/{block}" if block else ""),
            *["affine"] * (weights > 0),
            activation,
            *["save"] * save,
        ]
        kinds = ["fp8" if each == fp8 else str(each).removeprefix("torch.") for each in (of, dtype)]
        name = " ".join(["gemm_norm", *(w for w in words if w != "none"), " to ".join(kinds), f"{m}x{n}x{k}"])
        needs = "mma", *(["fp8_mma"] if of == fp8 else []), "wide_loads", "wide_stores"
        return Specimen(name, made, tuple(unfused), needs)

    bf16 = torch.bfloat16
    return [
        specimen("rms", "relu", 65536, 512, 512),
        specimen("layer", "relu", 65536, 512, 512, weights=2),
        specimen("rms", "relu", 65536, 512, 512, weights=2),
        specimen("rms", "silu", 65536, 512, 512),
        specimen("rms", "hard_swish", 65536, 512, 512, block=256),
        specimen("layer", "gelu", 65536, 512, 512, weights=2),
        specimen("rms", "relu", 262144, 512, 512),
        specimen("rms", "relu", 4096, 512, 512),
        specimen("rms", "relu", 1024, 512, 512),
        specimen("rms", "relu", 262144, 256, 256),
        specimen("layer", "relu", 65536, 128, 256, weights=2),
        specimen("rms", "relu", 65536, 512, 512, save=True, dtype=bf16),
        specimen("rms", "hard_swish", 65536, 512, 512, block=256, save=True),
        specimen("layer", "gelu", 65536, 512, 512, weights=2, save=True, dtype=bf16, biased=True),
        specimen("layer", "silu", 65536, 512, 512, weights=2, save=True, biased=True),
        specimen("layer", "gelu", 4096, 512, 512, weights=2, save=True, biased=True),
        specimen("layer", "silu", 65536, 256, 256, weights=2, save=True, of=bf16, dtype=bf16, biased=True),
        specimen("none", "gelu", 65536, 1024, 512, of=bf16, dtype=bf16, biased=True),
        specimen("layer", "none", 65536, 256, 256, weights=2, of=bf16, dtype=bf16, biased=True, added=True),
        specimen("layer", "none", 65536, 256, 256, weights=2, save=True, of=bf16, dtype=bf16, biased=True, added=True),
        specimen("layer", "none", 65536, 512, 512, weights=2, save=True, of=bf16, dtype=bf16, biased=True, added=True),
        specimen("rms", "none", 65536, 512, 512, weights=1, of=bf16, added=True),
        specimen("layer", "relu", 4096, 512, 512, weights=2, save=True, of=bf16, dtype=bf16, biased=True),
        specimen("none", "gelu", 65536, 1024, 512, save=True, of=bf16, dtype=bf16, biased=True),
        specimen("none", "relu", 65536, 512, 512),
        specimen("rms", "relu", 65536, 512, 512, of=bf16, dtype=bf16),
        specimen("rms", "relu", 4096, 512, 512, of=bf16, dtype=bf16),
        specimen("rms", "hard_swish", 65536, 1024, 512, block=256, dtype=bf16),
        specimen("lazy", "relu", 65536, 1024, 1024, dtype=bf16),
    ]
