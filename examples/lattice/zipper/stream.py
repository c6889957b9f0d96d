"""Trains a model on a stream of released samples, one pass, and stops and goes on anywhere.

Released samples wait until a batch is full; a step then takes it, and no sample is used twice. `save` and `resume`
carry the source's state, what waits, the module, the optimizer and torch's random state, in one safetensors file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from examples.lattice.files import whole
from examples.lattice.zipper.forward import generators, noted, set_buffers, set_generators, unlisted
from examples.lattice.zipper.identity import check, checksum, described, encoded
from examples.lattice.zipper.joiner import COLUMNS, Released
from examples.lattice.zipper.log import apart


class Source(Protocol):
    """What is released by the clock: a `Joiner` or a `Replay`. `position` is all that `advance` changes: put back, it
    undoes a call."""

    position: Any

    def advance(self, now: float) -> Released: ...

    def state(self) -> dict[str, Tensor]: ...

    def resume(self, state: dict[str, Tensor]) -> None: ...


class Stream:
    """loss(samples) -> Tensor computes a batch's loss; `until(now)` trains on all full batches released by `now`.

    What was released and not learned is in `waiting` at every moment, in its order. Where a batch fails or is
    interrupted (Ctrl-C), it waits with all behind it: the next `until`, here or after `save` and `resume`, takes it
    again, whole. Buffers and torch's random state are put back, so that it draws what it had drawn. Weights are
    untouched unless the optimizer had begun its step: a batch whose step was cut off in the middle, or in the moment
    before it is taken off `waiting`, is taken twice. For this every step copies the module's buffers: a large table of
    constants is better kept out of them."""

    def __init__(
        self,
        source: Source,
        module: nn.Module,
        loss: Callable[[Released], Tensor],
        batch: int = 128,
        rate: float = 1e-3,
    ) -> None:
        if batch < 1:
            raise ValueError(f"a step takes a batch of 1 sample or more, got {batch}")
        self.source, self.module, self.loss, self.batch = source, module, loss, batch
        self.optimizer = torch.optim.Adam(module.parameters(), rate, fused=True)
        self.rate = rate
        self.waiting = source.advance(float("-inf"))
        self.steps = 0

    def until(self, now: float) -> None:
        self._release(now)
        while len(self.waiting) >= self.batch:
            samples, rest = self.waiting[: self.batch], self.waiting[self.batch :]
            put_back = noted(self.module)
            try:
                loss = self.loss(samples)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.waiting, self.steps = rest, self.steps + 1
            except BaseException:  # Ctrl-C, too
                put_back()
                raise

    def _release(self, now: float) -> None:
        """Adds to `waiting` what the source has released; both move, or neither does."""
        position, waiting = self.source.position, self.waiting
        try:
            new = self.source.advance(now)
            columns = ((getattr(waiting, name), getattr(new, name)) for name in COLUMNS)
            self.waiting = Released(*(torch.cat(pair) for pair in columns))
        except BaseException:  # Ctrl-C, too
            self.source.position, self.waiting = position, waiting
            raise

    def save(self, path: Path) -> None:
        """Everything that the rest of the run depends on, written whole or not at all."""
        tensors = {f"source.{name}": value for name, value in self.source.state().items()}
        tensors |= {f"waiting.{name}": getattr(self.waiting, name) for name in COLUMNS}
        tensors |= {f"module.{name}": value for name, value in self.module.state_dict().items()}
        tensors |= {f"unlisted.{name}": value for name, value in unlisted(self.module).items()}
        tensors |= {f"random.{device}": state for device, state in generators(self.module).items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        tensors["steps"] = torch.tensor(self.steps)
        tensors |= described(self._identity())
        with whole(path) as beside:
            save_file(apart(tensors), beside)

    def resume(self, path: Path) -> None:
        """Goes on where `save` was called; source, module and loss must be made as they were then. Another source,
        batch, rate or module is refused; of the loss nothing is known, nor of an optimizer that was put in.

        torch's random state becomes that of `save`, for whoever draws from it. What the loss draws from a generator of
        its own, from numpy or from Python is not carried."""
        tensors = load_file(path)
        check(tensors, self._identity())
        self.source.resume(_under(tensors, "source"))
        waiting = _under(tensors, "waiting")
        self.waiting = Released(*(waiting[name] for name in COLUMNS))
        self.module.load_state_dict(_under(tensors, "module"))
        with torch.no_grad():
            set_buffers(self.module, _under(tensors, "unlisted"))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(tensors, "optimizer").items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.steps = int(tensors["steps"])
        set_generators(_under(tensors, "random"), self.module)

    def _identity(self) -> dict[str, str]:
        learned = [value.numel() for value in self.module.parameters()]  # tied ones once
        every = self.module.state_dict() | unlisted(self.module)  # buffers, too
        shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in every.items()]
        types = " and ".join(sorted({str(value.dtype) for value in self.module.parameters()}))
        names = f"names, shapes and types with checksum {checksum(encoded(repr(shapes)))}"
        parameters = f"{len(learned)} of {sum(learned)} numbers, of {types}, {names}"
        return {"batch": f"{self.batch}", "rate": f"{self.rate!r}", "parameters": parameters}


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
