"""How it is called: the columns of the matrix of ways of use (matrix.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.online.rows import Prepare


def _as_it_is(net: nn.Module) -> nn.Module:
    return net


def _ddp(net: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(net, bucket_cap_mb=1)  # every linear is a bucket


def _fsdp(net: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in net.layers:
        fully_shard(layer)
    return fully_shard(net)


@dataclass(frozen=True)
class Column:
    """How a story is told.

    rows: of its batches, one after the other. calls: in each half. left: the reason for which loka leaves it to
    Inductor, as explain says it; "" where it lowers. ranks: processes; 0 outside of torch.distributed. within: a
    context around all of it. stance: that of all calls but the first.
    """

    training: bool = False
    rows: tuple[int, ...] = (96,)
    calls: int = 6
    left: str = ""
    ranks: int = 0
    dynamic: bool | None = None
    unbacked: bool = False
    reentrant: bool | None = None
    compiled_backward: bool = False
    prepare: Prepare = _as_it_is
    within: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    stance: str = "default"
    twice: bool = False


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _dynamo_config(**settings: Any) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    return lambda: torch._dynamo.config.patch(**settings)


MANY = 130
"""Calls after which an online session may measure again (online.pace.AT_LEAST, and some)."""

COLUMNS: dict[str, Column] = {
    "inference": Column(),
    "training": Column(training=True, calls=MANY),
    "dynamic=True": Column(dynamic=True, rows=(96, 40, 64)),
    "dynamic=None": Column(rows=(96, 96, 96, 96, 40, 64)),
    "unbacked": Column(rows=(96, 40, 64), unbacked=True, left="unbacked"),
    "checkpoint": Column(training=True, calls=MANY, reentrant=False),
    "reentrant checkpoint": Column(training=True, calls=MANY, reentrant=True),
    "compiled autograd": Column(
        training=True,
        compiled_backward=True,
        within=_dynamo_config(compiled_autograd=True),
        left="compiled autograd",
    ),
    "DDP, 1 process": Column(training=True, ranks=1, prepare=_ddp),
    "DDP, 2 processes": Column(training=True, ranks=2, prepare=_ddp),
    "FSDP2, 2 processes": Column(training=True, ranks=2, prepare=_fsdp),
    "fail_on_recompile": Column(stance="fail_on_recompile"),
    "eager_on_recompile": Column(stance="eager_on_recompile"),
    "recompile limit 1": Column(within=_dynamo_config(recompile_limit=1)),
    "deterministic": Column(training=True, within=_deterministic, twice=True, left="deterministic algorithms"),
}
