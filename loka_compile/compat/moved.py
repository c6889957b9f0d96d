"""Names that PyTorch changes from version to version. Each is looked up here, and nowhere else, by what is there.

| what | torch 2.11, 2.12 | torch 2.13, 2.14 |
| --- | --- | --- |
| a node's loops, kept and put back | its attributes | `SchedulerNode.snapshot_loop_state`, `restore_loop_state` |
| the parameters that FSDP2 shards together | `FSDPState._fsdp_param_group` (2.11) | `_fsdp_param_groups`, in 2.12 too |
| the CPU's `_int_mm` with a left operand of uint8 | no (2.11) | yes, in 2.12 too |
| the CPU's `_scaled_mm` with one scale a row | no (2.11) | yes, in 2.12 too |
| the overload of an operator that writes into memory given | `torch.Tag.out_variant`; 2.11 never calls it | `Tag.out` |
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from loka_compile.compat.tracing import outside_compilation

TESTED = "2.13"
"""The version on which the whole suite of tests runs; of the others docs/versions.md says what has run."""
_LOOPS = "_body", "_sizes", "group", "read_writes", "unmet_dependencies"
"""The attributes that SchedulerNode.recompute_size_and_body sets anew, torch 2.11 to 2.14."""


@functools.cache
def say_if_untested(version: str = torch.__version__) -> None:
    """One warning a process where the version that runs is not the one that everything is tested on."""
    if not version.startswith(f"{TESTED}."):
        logging.getLogger("loka").warning(
            "loka is tested on torch %s; on %s only parts of its tests have run (docs/versions.md)", TESTED, version
        )


def loops_of(node: Any) -> Any:
    """The loops of one of Inductor's SchedulerNodes, for `put_back`."""
    if hasattr(node, "snapshot_loop_state"):
        return node.snapshot_loop_state()
    return tuple(getattr(node, name) for name in _LOOPS)


def put_back(node: Any, loops: Any) -> None:
    if hasattr(node, "restore_loop_state"):
        node.restore_loop_state(loops)
        return
    for name, value in zip(_LOOPS, loops, strict=True):
        setattr(node, name, value)
    node.pointwise_read_writes.clear_cache(node)


def tag_of_out() -> torch.Tag:
    """By which Inductor knows the overload of a custom operator that writes into memory that it is given."""
    return torch.Tag.out if hasattr(torch.Tag, "out") else torch.Tag.out_variant


def fsdp_groups(state: Any) -> tuple[Any, ...]:
    """The groups of parameters of a module under FSDP2 (FSDPState); none of a module that has no parameters."""
    if hasattr(state, "_fsdp_param_groups"):
        return tuple(state._fsdp_param_groups)
    group = state._fsdp_param_group
    return () if group is None else (group,)


@functools.cache
def cpu_int_mm_takes_uint8() -> bool:
    def product() -> Tensor:
        a = torch.zeros(2, 8, dtype=torch.uint8, device="cpu")
        return torch._int_mm(a, torch.zeros(8, 2, dtype=torch.int8, device="cpu"))

    return _runs(product)


@functools.cache
def cpu_scaled_mm_takes_rows() -> bool:
    def product() -> Tensor:
        scale = torch.ones(16, 1, dtype=torch.float32, device="cpu")
        a = torch.zeros(16, 16, dtype=torch.float32, device="cpu").to(torch.float8_e4m3fn)
        return torch._scaled_mm(a, a.t(), scale_a=scale, scale_b=scale.t())

    return _runs(product)


def _runs(call: Callable[[], Any]) -> bool:
    """Whether the product can be computed, on real tensors whoever asks."""
    try:
        with outside_compilation():
            call()
    except RuntimeError:
        return False
    return True
