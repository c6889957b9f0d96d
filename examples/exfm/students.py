"""The students: small models for three stages of ranking, as backbones that heads are put on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from examples.exfm.distil.auxiliary_head import AuxiliaryHead
from examples.exfm.distil.student_adapter import StudentAdapter
from examples.exfm.errors import ExfmError
from examples.exfm.stream.events import Schema
from examples.exfm.two_tower import TwoTower
from examples.models.dcnv2 import DCNv2
from examples.models.dlrm import DLRM

Built = tuple[nn.Module, int]
"""A backbone, and how many numbers it gives a row."""


def retrieval(schema: Schema) -> Built:
    """Two towers."""
    return TwoTower(schema.fields, schema.cardinalities, schema.bag, width=32, hidden=(64,), dropout=0.0), 32


def early(schema: Schema) -> Built:
    """DLRM without its last layer."""
    model = DLRM(schema.cardinalities, schema.bag, width=16, bottom=(32,), top=(64, 32), dropout=0.0)
    model.top = model.top[:-1]
    return model, 32


def late(schema: Schema) -> Built:
    """DCNv2 without its last layer."""
    model = DCNv2(schema.cardinalities, schema.bag, width=16, layers=2, deep=(64, 32), dropout=0.0)
    width = model.head.in_features
    model.head = nn.Identity()
    return model, width


STAGES: dict[str, Callable[[Schema], Built]] = {"retrieval": retrieval, "early": early, "late": late}
"""Backbones by name. One of your own goes in here, under a name of its own, before students are built."""
ARMS = ("none", "shared", "auxiliary", "adapter")
"""No distillation; a shared head; the Auxiliary Head; the Auxiliary Head with the Student Adapter."""


@dataclass(frozen=True)
class StudentSpec:
    """Which traffic a student learns from and serves, what it is, and how it is taught.

    name: in files and tables. vertical: by name. stage: one of STAGES. arm: one of ARMS. beta, alpha, weight: of the
    Auxiliary Head (a shared head has alpha and weight only). seed: of its first weights and of what it draws. rate,
    table_rate, batch: chosen for students without a teacher, on days 14 to 60 of MovieLens.
    """

    name: str
    vertical: str
    stage: str
    arm: str = "adapter"
    beta: float = 1.0
    alpha: float = 1.0
    weight: float = 1.0
    seed: int = 0
    rate: float = 1e-3
    table_rate: float = 1e-2
    batch: int = 64

    def __post_init__(self) -> None:
        for what, value, known in (("stage", self.stage, tuple(STAGES)), ("arm", self.arm, ARMS)):
            if value not in known:
                raise ExfmError(f"student {self.name}: there is no {what} {value!r}; there are {', '.join(known)}")
        if self.arm == "shared" and self.beta != 1:
            raise ExfmError(f"student {self.name}: a shared head has no gradient of its own to scale: leave beta at 1")

    def build(self, schema: Schema) -> tuple[AuxiliaryHead, StudentAdapter | None]:
        """The same first weights of backbone and serving head in every arm: they are drawn first."""
        torch.manual_seed(self.seed)
        backbone, width = STAGES[self.stage](schema)
        taught = self.arm != "none"
        student = AuxiliaryHead(
            backbone,
            width,
            beta=self.beta,
            alpha=self.alpha,
            weight=self.weight if taught else 0.0,
            shared=self.arm == "shared",
            adapter_head=self.arm == "adapter",
        )
        return student, StudentAdapter() if self.arm == "adapter" else None
