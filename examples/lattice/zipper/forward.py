"""What a forward pass changes beside its output: the module's buffers, and the states of torch's own generators, from
which dropout and the like draw. Generators of the loss's own, numpy's and Python's are not known here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def generators(module: nn.Module) -> dict[str, Tensor]:
    """By device the state of torch's generator: the CPU's, and those of the devices that the module lies on."""
    devices = {str(value.device): value.device for value in (*module.parameters(), *module.buffers())}
    found = {"cpu": torch.get_rng_state()}
    for name, device in devices.items():
        if device.type not in ("cpu", "meta"):
            found[name] = torch.get_device_module(device).get_rng_state(device)
    return found


def set_generators(states: dict[str, Tensor], module: nn.Module) -> None:
    """Puts back the states of those devices that `generators` would name now: another device draws other numbers."""
    for name in generators(module).keys() & states.keys():
        if name == "cpu":
            torch.set_rng_state(states[name])
        else:
            torch.get_device_module(name).set_rng_state(states[name], name)


def unlisted(module: nn.Module) -> dict[str, Tensor]:
    """By name the buffers that are not in the module's `state_dict`, as they are not persistent."""
    listed = module.state_dict().keys()
    return {name: value for name, value in module.named_buffers(remove_duplicate=False) if name not in listed}


def set_buffers(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Writes these values into the buffers of these names. One that has its value already is not touched: constants
    may be views that cannot be written."""
    own = dict(module.named_buffers(remove_duplicate=False))
    for name, value in values.items():
        if not torch.equal(own[name].cpu(), value.cpu()):
            own[name].copy_(value)


def noted(module: nn.Module) -> Callable[[], None]:
    """Notes what a forward pass may change, and gives a call that puts it back."""
    states = generators(module)
    buffers = dict(module.named_buffers(remove_duplicate=False))
    values = {name: value.clone() for name, value in buffers.items()}

    def put_back() -> None:
        set_generators(states, module)
        for name, value in buffers.items():  # the pass may have put another tensor in its place
            owner, _, last = name.rpartition(".")
            setattr(module.get_submodule(owner), last, value)
        with torch.no_grad():
            set_buffers(module, values)

    return put_back
