"""The eight models of the benches, each with random inputs of its kind."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from examples.models.bst import BST
from examples.models.dcnv2 import DCNv2
from examples.models.din import DIN
from examples.models.dlrm import DLRM
from examples.models.mmoe import MMoE
from examples.models.ple import PLE
from examples.models.sasrec import SASRec
from examples.models.wukong import Wukong

FIELDS, BAG, MOST = (944, 8, 3, 22, 1683, 73, 12), 20, 4
"""Ids of each field, as in MovieLens-100k, and the bag's."""
ITEMS, LENGTH, DENSE = 1683, 20, 8
Inputs = tuple[Tensor, ...]


def rows(batch: int) -> Inputs:
    ids = torch.stack([torch.randint(size, (batch,)) for size in FIELDS], 1)
    return ids, torch.randint(BAG, (batch, MOST))


def histories(batch: int) -> Inputs:
    history = torch.randint(1, ITEMS, (batch, LENGTH))
    history[torch.arange(LENGTH) >= torch.randint(1, LENGTH + 1, (batch, 1))] = 0
    return history, torch.randint(1, ITEMS, (batch,)), torch.randn(batch, DENSE)


def sequences(batch: int) -> Inputs:
    history = histories(batch)[0]
    return history, torch.randint(1, ITEMS, (batch, LENGTH, 2))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Inputs]]] = {
    "Wukong": (lambda: Wukong(FIELDS, BAG), rows),
    "DLRM": (lambda: DLRM(FIELDS, BAG), rows),
    "DCNv2": (lambda: DCNv2(FIELDS, BAG), rows),
    "MMoE": (lambda: MMoE(FIELDS, BAG), rows),
    "BST": (lambda: BST(ITEMS, LENGTH, DENSE), histories),
    "SASRec": (lambda: SASRec(ITEMS, LENGTH), sequences),
    "DIN": (lambda: DIN(ITEMS, DENSE), histories),
    "PLE": (lambda: PLE(FIELDS, BAG), rows),
}
