"""Checkpoints: everything that a process must know to go on as if it had never stopped, in one file.

Where the stream stands, what waits, models, optimizers and counts are written together, so that they never disagree.
The newest whole file counts; one that is damaged is left out and named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from examples.exfm import files
from examples.exfm.counters import Counters

KEPT = 2
SAID = "exfm"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """tensors: by name; said: everything else, as JSON."""

    number: int
    tensors: Mapping[str, Tensor]
    said: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, without that."""
        return {name.removeprefix(prefix): each for name, each in self.tensors.items() if name.startswith(prefix)}


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write it, and forget all but the last KEPT."""
    body = json.dumps(dict(checkpoint.said))
    sum_ = files.checksum(body.encode() + files.packed(checkpoint.tensors, {}))
    files.write(_path(folder, checkpoint.number), files.packed(checkpoint.tensors, {SAID: body, "checksum": sum_}))
    for path in sorted(folder.glob("*.safetensors"))[:-KEPT]:
        path.unlink()


def load(folder: Path, counters: Counters | None = None) -> Checkpoint | None:
    """The newest that is whole, None if there is none."""
    for path in sorted(folder.glob("*.safetensors"), reverse=True):
        try:
            content = path.read_bytes()
            with safetensors.safe_open(path, "pt") as file:
                said = file.metadata()
            tensors = safetensors.torch.load(content)
            if files.checksum(said[SAID].encode() + files.packed(tensors, {})) != said["checksum"]:
                raise ValueError("its checksum is another")
            return Checkpoint(int(path.stem), tensors, json.loads(said[SAID]))
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            if counters is not None:
                counters.add("corrupt_checkpoint", words=f"{path.name}: {error}")
    return None


def arrays(values: Mapping[str, np.ndarray], prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in values.items()}


def training(model: nn.Module, optimizer: torch.optim.Optimizer, prefix: str = "") -> dict[str, Tensor]:
    """A model and its optimizer as tensors."""
    found = {f"{prefix}model.{name}": each.clone() for name, each in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        found |= {f"{prefix}optimizer.{index}.{name}": torch.as_tensor(each).clone() for name, each in state.items()}
    return found


def resume(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
    """The reverse of `training`."""
    start = f"{prefix}model."
    model.load_state_dict({n.removeprefix(start): each for n, each in tensors.items() if n.startswith(start)})
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, each in tensors.items():
        if name.startswith(f"{prefix}optimizer."):
            index, key = name.removeprefix(f"{prefix}optimizer.").split(".")
            state.setdefault(int(index), {})[key] = each
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:08}.safetensors"
