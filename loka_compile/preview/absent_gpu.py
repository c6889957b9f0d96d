"""A GPU that is not there: one context in which torch, triton and Inductor believe that it is.

    with absent_gpu("h100", recorder):
        ...                                # tensors on "cuda" are fake, launches are recorded instead of made

Only in a process whose libtorch was told so before it was imported (shim.py), and one GPU at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from loka_compile.preview import torch_patches
from loka_compile.spec.chips import CHIPS, Chip
from loka_compile.spec.target import TARGETS, Target

ARCHS = {chip.target: chip.arch for chip in CHIPS.values() if chip.target} | {"h200": "sm_90"}
"""What is compiled for a target."""
_MISSING = object()


@dataclass(frozen=True)
class Gpu:
    """What the patches of torch_patches.py tell whoever asks, and whom they tell what is launched."""

    target: Target
    on_inductor_kernel: Callable[..., Any]
    on_triton_kernel: Callable[..., Any]
    on_wrapper: Callable[..., Any]

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def arch(self) -> str:
        return ARCHS[self.target.name]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.arch]

    @property
    def amd(self) -> bool:
        return self.chip.amd

    @property
    def capability(self) -> tuple[int, int]:
        """Of an AMD GPU as ROCm's torch answers: the first two digits of gfx942, gfx950."""
        digits = self.arch.removeprefix("sm_").removeprefix("gfx")
        return (int(digits[0]), int(digits[1])) if self.amd else (int(digits[:-1]), int(digits[-1]))

    @property
    def major(self) -> int:
        return self.capability[0]

    @property
    def minor(self) -> int:
        return self.capability[1]

    @property
    def properties(self) -> Any:
        """What torch.cuda.get_device_properties returns."""
        return SimpleNamespace(
            name=self.name,
            major=self.major,
            minor=self.minor,
            multi_processor_count=self.chip.sms,
            total_memory=int(self.target.memory),
            warp_size=self.chip.lanes,
            regs_per_multiprocessor=65536,
            max_threads_per_multi_processor=self.chip.warps * self.chip.lanes,
            max_threads_per_block=1024,
            shared_memory_per_block=49152,
            shared_memory_per_block_optin=self.chip.shared_limit,
            shared_memory_per_multiprocessor=self.chip.shared,
            gcnArchName=self.arch if self.amd else "",
            L2_cache_size=50 << 20,
        )


def gpu_target(name: str) -> Target:
    """Raises ValueError for what is no GPU that code can be generated for."""
    if name not in ARCHS:
        raise ValueError(f"target: expected one of {', '.join(ARCHS)}, got {name!r}")
    return TARGETS[name]


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


def _attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
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
