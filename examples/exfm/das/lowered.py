"""The teacher in low precision: scored under a loka plan, whose error is checked for every snapshot.

The plan is made from what Probe sees of the first batch, and followed to the letter. A new snapshot's weights go into
the same compiled model; on its first batch the scores are held against the model's own. If they are too far off, the
snapshot has changed what Probe saw: it is probed again, and dispatched and compiled anew. If that does not help
either, the snapshot is run as it is.

How far off is told in what it costs students: were the exact scores p right, the log loss of the scores q would be
higher by KL(p, q), of an entropy of H(p). Budget: KL / H at most 0.02 %, the change of NE that counts ([I]).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import loka_compile as loka
from examples.apart import APART
from examples.exfm.counters import Counters
from examples.exfm.errors import ExfmError
from examples.exfm.teacher import Teacher

HOW = ("eager", "inductor", "loka")
Run = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Check:
    """Of a snapshot's first batch. loss: KL / H; embedding: RMS error over RMS; lowered: GEMMs in low precision."""

    loss: float
    embedding: float
    lowered: int

    def __str__(self) -> str:
        return f"KL / H {self.loss:.1e}, embedding off by {self.embedding:.1e}, {self.lowered} GEMMs lowered"


@dataclass
class Lowered:
    """What a Scorer calls with its model at every snapshot. Batches are cut and filled up to `batch` rows, so that one
    graph serves them all.

    how: one of HOW. max_loss, max_embedding: budgets of a Check. options: of loka's dispatch.
    """

    how: str = "loka"
    batch: int = 512
    max_loss: float = 2e-4
    max_embedding: float = 0.05
    options: Mapping[str, Any] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    checks: list[Check] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise ExfmError(f"a teacher is run in one of {', '.join(HOW)}, not in {self.how!r}")
        self.model: Teacher | None = None
        self.compiled: Run | None = None
        self.plan: loka.Plan | None = None
        self.checked = False
        self.exact = self.how == "eager"

    def __call__(self, model: Teacher) -> Run:
        """The model has other weights now."""
        if model is not self.model:
            self.model, self.compiled = model, None
        self.checked, self.exact = False, self.how == "eager"
        return self.run

    @torch.no_grad()
    def run(self, ids: Tensor, bag: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and embeddings of any number of rows."""
        found = [self._batch(*part) for part in zip(ids.split(self.batch), bag.split(self.batch), strict=True)]
        logits, embeddings = zip(*found, strict=True)
        return torch.cat(logits), torch.cat(embeddings)

    def _batch(self, ids: Tensor, bag: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.arange(self.batch) % len(ids)  # filled up by starting over
        whole = ids[rows], bag[rows]
        if not self.checked and not self.exact:
            self._check(*whole)
        run = self.model if self.exact else self.compiled
        logit, embedding = run(*whole)
        return logit[: len(ids)].clone(), embedding[: len(ids)].clone()

    def _check(self, ids: Tensor, bag: Tensor) -> None:
        """Have a compiled model whose scores are near enough on this batch, or none."""
        self.checked = True
        if self.compiled is None:
            self._compile(ids, bag)
        if self._near(ids, bag):
            return
        self.counters.add("replanned")
        self._compile(ids, bag)
        if not self._near(ids, bag):
            self.counters.add("exact_instead", words=f"{self.checks[-1]}")
            self.exact = True

    def _compile(self, ids: Tensor, bag: Tensor) -> None:
        if self.how == "inductor":
            self.compiled = torch.compile(self.model, **APART)
            return
        with loka.probe(self.model) as probe:
            self.model(ids, bag)
        self.plan = loka.dispatch(probe.profile, options=loka.Options(**self.options))
        self.compiled = torch.compile(self.model, backend="loka", options={"plan": self.plan}, **APART)

    def _near(self, ids: Tensor, bag: Tensor) -> bool:
        exact, low = self.model(ids, bag), self.compiled(ids, bag)
        lowered = len(self.plan.lowered) if self.plan is not None else 0
        check = Check(loss_rise(exact[0], low[0]), relative(exact[1], low[1]), lowered)
        worst = all(check.loss > each.loss for each in self.checks)  # so is the first
        self.counters.add("plan_checked", words=str(check) if worst else "")
        self.checks.append(check)
        return check.loss <= self.max_loss and check.embedding <= self.max_embedding


def loss_rise(exact: Tensor, low: Tensor) -> float:
    """KL(p, q) / H(p) of the probabilities of two sets of logits, means over rows; inf where one is no number."""
    p, q = exact.double(), low.double()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(p, p.sigmoid())
    cross = torch.nn.functional.binary_cross_entropy_with_logits(q, p.sigmoid())
    return float(((cross - entropy) / entropy).nan_to_num(nan=torch.inf))


def relative(exact: Tensor, low: Tensor) -> float:
    """RMS of the difference over RMS; inf where one is no number."""
    error = (low - exact).double().square().mean().sqrt() / exact.double().square().mean().sqrt().clamp(min=1e-12)
    return float(error.nan_to_num(nan=torch.inf))
