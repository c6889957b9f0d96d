"""The tensors that FSDP2 puts in place of a module's parameters while it is called. Seen in torch 2.11 to 2.14."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from loka_compile.compat.moved import fsdp_groups


def parameters_at_calls(module: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """A module's parameters, and behind them those whole ones that a compiled graph is called with where FSDP2 has
    sharded them."""
    yield from module.parameters()
    for each in module.modules():
        for group in fsdp_groups(each._get_fsdp_state()) if hasattr(each, "_get_fsdp_state") else ():
            whole = (getattr(known, "_unsharded_param", None) for known in group.fsdp_params)  # none before a call
            yield from (parameter for parameter in whole if parameter is not None)
