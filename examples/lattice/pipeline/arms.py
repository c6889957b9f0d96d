"""The models that a run compares: one for each portfolio, one for all as it comes, and one with what Lattice adds.

separate             a network of the same size for each (domain, task), on its own rows
merged               one network a group of the partition, nothing untied
merged, untied       with copies of weights for domains whose gradients disagree, FFNs and towers by domain, and the
                     correlation loss
consolidated         and with the teacher's embedding and soft labels (KTAP)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from examples.apart import APART
from examples.lattice.ktap.record import Knowledge
from examples.lattice.ktap.student import Use
from examples.lattice.networks import fit
from examples.lattice.networks.loss import NO_TEACHER, Objective
from examples.lattice.networks.model import LatticeNetwork
from examples.lattice.networks.samples import Samples
from examples.lattice.networks.size import Size
from examples.lattice.pipeline.stages import Watch

SEPARATE, LONGER = "separate", "separate, longer"
MERGED, UNTIED, CONSOLIDATED = "merged", "merged, untied", "consolidated"
CORRELATION = 0.1
TRAINING = {"recipes": (), "measure_calls": 0}
"""loka's options for training: in the model's own precision."""
Compile = Callable[[nn.Module], Callable[..., Tensor]]
Backend = dict[str, Compile]
BACKENDS: dict[str, Backend] = {
    "eager": {"training": lambda model: model, "serving": lambda model: model},
    "inductor": {
        "training": lambda model: torch.compile(model, **APART),
        "serving": lambda model: torch.compile(model, **APART),
    },
    "loka": {
        "training": lambda model: torch.compile(model, backend="loka", options=TRAINING, **APART),
        "serving": lambda model: torch.compile(model, backend="loka", **APART),
    },
}


@dataclass(frozen=True, eq=False)
class Job:
    """One training: which rows and labels, how large, on what."""

    name: str
    found: Samples
    size: Size
    objective: Objective
    epochs: int = 1


def jobs(arm: str, found: Samples, size: Size, parts: dict[str, Any], knowledge: Knowledge | None) -> list[Job]:
    """The trainings of an arm. parts: what stages.grouped found."""
    tied = replace(size, by_domain=False, untied=())
    if arm in (SEPARATE, LONGER):
        made = []
        for d, t in (key for group in parts["groups"] for key in group):
            own = found.portfolio(d, t)
            epochs = 1 if arm == SEPARATE else max(1, round(found.cut / max(own.cut, 1)))
            made.append(Job(f"{found.domains[d]}: {found.tasks[t]}", own, tied, Objective(), epochs))
        return made
    made = []
    for number, (group, untied) in enumerate(zip(parts["groups"], parts["untied"], strict=True)):
        own = found.only([(d, t) for d, t in group])
        if arm == MERGED:
            made.append(Job(f"group {number}", own, tied, Objective()))
            continue
        its = replace(size, untied=tuple(untied), towers=True)
        teach = arm == CONSOLIDATED and knowledge is not None
        use = Use() if teach else NO_TEACHER
        made.append(Job(f"group {number}", own.taught(knowledge) if teach else own, its, Objective(CORRELATION, use)))
    return made


def arm(which: list[Job], backend: Backend, seed: int, folder: Path | None, watch: Watch) -> dict[str, Any]:
    """Trains all models of an arm: scores by portfolio, FLOPs and parameters, seconds of a step. folder: where the
    weights are written."""
    scores: dict[str, dict[str, float]] = {}
    flops: list[float] = []
    tables = weights = 0
    cpu = steps = 0.0
    for job in which:
        torch.manual_seed(seed)
        model = LatticeNetwork(job.found.schema, job.size)
        call = backend["training"](model)
        rows = known_rows(job.found, job.found.train)
        taken = fit.steps(len(rows), job.epochs)
        start = time.process_time()
        losses = fit.train(model, call, job.found, rows, job.objective, epochs=job.epochs)
        for _ in watch(losses, taken, job.name):
            pass
        cpu, steps = cpu + time.process_time() - start, steps + taken
        scores |= fit.judge(job.found, job.found.test, fit.predict(call, job.found, job.found.test))
        flops.append(fit.flops_of(model, job.found))
        its_tables, its_weights = fit.parameters(model)
        tables, weights = tables + its_tables, weights + its_weights
        if folder:
            save_model(model, folder / f"{job.name}.safetensors")
    return {
        "portfolios": scores,
        "flops_by_model": flops,
        "tables": tables,
        "weights": weights,
        "cpu_seconds": cpu,
        "cpu_ms_a_step": 1e3 * cpu / steps,
    }


def known_rows(found: Samples, rows: Tensor) -> Tensor:
    """Those that have a label at all."""
    return rows[~found.labels[rows].isnan().all(dim=1)]
