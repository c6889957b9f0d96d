"""A GPU that is not there: one context in which torch, triton and Inductor believe that it is.

    with absent_gpu("h100", recorder):
        ...                                # tensors on "cuda" are fake, launches are recorded instead of made

Only in a process whose libtorch was told so before it was imported (shim.py), and one GPU at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from loka_compile.preview import torch_patches
from loka_compile.preview.gpu import Gpu, gpu_target

_MISSING = object()


@contextlib.contextmanager
def absent_gpu(target: str, recorder: Any) -> Iterator[Gpu]:
    """recorder: has inductor_kernel, triton_kernel and wrapper, which are told what would be launched."""
    gpu = Gpu(gpu_target(target), recorder.inductor_kernel, recorder.triton_kernel, recorder.wrapper)
    attention = torch.library.Library("aten", "IMPL")
    with contextlib.ExitStack() as undo:
        for key in ("AutogradCUDA", "CUDA"):  # a build without CUDA has no say in which kernel it would take
            attention.impl("scaled_dot_product_attention", _attention, key)
        undo.callback(lambda: attention._destroy())
        undo.enter_context(torch_patches.triton_driver(gpu))
        _set(undo, torch.version, "hip" if gpu.amd else "cuda", "6.4" if gpu.amd else "12.9")
        for patch in torch_patches.PATCHES:
            holder = patch.holder()
            original = getattr(holder, patch.name, None)
            _set(undo, holder, patch.name, patch.make(gpu, original))
        torch_patches.forget_the_device()
        undo.callback(torch_patches.forget_the_device)
        yield gpu


def _set(undo: contextlib.ExitStack, holder: Any, name: str, value: Any) -> None:
    before = vars(holder).get(name, _MISSING)
    undo.callback(lambda: delattr(holder, name) if before is _MISSING else setattr(holder, name, before))
    setattr(holder, name, value)


def _attention(
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: Any = None,
    enable_gqa: bool = False,
) -> Any:
    """CUDA's choice: flash attention for 16 bits without a mask, memory-efficient with one, else plain products. A mask
    of bools becomes one of numbers to be added first, as in ATen (convert_boolean_attn_mask)."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, torch.scalar_tensor(-torch.inf, dtype=q.dtype, device=q.device))
    fits = q.dtype in (torch.float16, torch.bfloat16) and q.dim() == 4 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
    aten = torch.ops.aten
    if fits and attn_mask is None and not enable_gqa:
        return aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, False, scale=scale)[0]
    if fits and attn_mask is not None and attn_mask.dtype == q.dtype and not is_causal and not enable_gqa:
        bias = attn_mask.expand(*q.shape[:-1], k.shape[-2])
        grad = q.requires_grad
        return aten._scaled_dot_product_efficient_attention(q, k, v, bias, grad, dropout_p, False, scale=scale)[0]
    plain = aten._scaled_dot_product_attention_math
    return plain(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)[0]
