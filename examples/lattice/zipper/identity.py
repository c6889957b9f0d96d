"""What a checkpoint belongs to: written down in it as text by name, compared before a run goes on from it."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from examples.lattice.data import DataError

PREFIX = "of "


def described(identity: dict[str, str]) -> dict[str, Tensor]:
    """The texts as tensors of bytes, which go into a state."""
    return {f"{PREFIX}{name}": encoded(text) for name, text in identity.items()}


def check(state: dict[str, Tensor], identity: dict[str, str]) -> None:
    """A state must be of this identity."""
    wrong = []
    for name, here in identity.items():
        there = state.get(f"{PREFIX}{name}")
        text = "not written down in it (it is of an older version)" if there is None else _text(there)
        if text != here:
            wrong.append(f"{name}: {text} in the checkpoint, {here} here")
    if wrong:
        raise DataError(f"the checkpoint is of another run; {'; '.join(wrong)}: start with what it was made with")


def checksum(*columns: Tensor) -> str:
    """Of the bytes of all values, in order; equal for equal columns, whatever memory they lie in."""
    found = hashlib.blake2b(digest_size=8)
    for column in columns:
        found.update(column.contiguous().numpy().tobytes())
    return found.hexdigest()


def encoded(text: str) -> Tensor:
    """Its bytes in UTF-8."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _text(tensor: Tensor) -> str:
    return bytes(tensor.tolist()).decode()
