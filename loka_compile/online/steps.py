"""Which changes of a parameter were training steps: those that a torch optimizer made, told apart from all others."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from loka_compile import compat


@dataclass
class _Chain:
    """Steps of which each began at the version that the one before left: from version `first` to `last`."""

    memory: compat.Memory
    first: int
    last: int


_chains: dict[int, _Chain] = {}


def follow(parameters: list[Tensor]) -> None:
    """From now on tell the steps of these."""
    if not _chains:
        _listen()
    for parameter in parameters:
        key, known = id(parameter), _chains.get(id(parameter))
        if not parameter.is_inference() and not (known and compat.is_memory_of(known.memory, parameter)):
            version, forget = parameter._version, functools.partial(_forget, key)
            _chains[key] = _Chain(compat.memory_of(parameter, forget), version, version)


def _forget(key: int, _: compat.Memory) -> None:
    _chains.pop(key, None)


def only_steps(parameter: Tensor, since: int) -> bool:
    """Whether what changed the parameter since that version of it were optimizer steps and nothing else."""
    chain = _chains.get(id(parameter))
    followed = chain is not None and compat.is_memory_of(chain.memory, parameter)
    return chain is not None and followed and chain.first <= since and chain.last == parameter._version


# Not for Dynamo, which would compile what a compiled `optimizer.step` calls.


def _of(optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, _Chain]]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [(p, _chains[id(p)]) for p in parameters if id(p) in _chains]


@torch.compiler.disable
def _before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for parameter, chain in _of(optimizer):
        if parameter._version != chain.last:
            chain.first = parameter._version


@torch.compiler.disable
def _after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for parameter, chain in _of(optimizer):
        chain.last = parameter._version


_listening = False


def _listen() -> None:
    global _listening
    if not _listening:
        register_optimizer_step_pre_hook(_before)
        register_optimizer_step_post_hook(_after)
        _listening = True
