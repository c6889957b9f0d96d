"""The models that a run compares: one for each portfolio, one for all as it comes, and one with what Lattice adds.

separate             a network of the same size for each (domain, task), on its own rows
separate, longer     the same, with as many steps as one for all portfolios takes
all in one           one network for all portfolios; where the partition has one group, merged is this
merged               one network a group of the partition, nothing untied
merged, untied       with copies of weights for domains whose gradients disagree, FFNs and towers by domain, and the
                     correlation loss
consolidated         and with the teacher's embedding and soft labels (KTAP)
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model

from examples.apart import APART
from examples.lattice.ktap.record import Knowledge
from examples.lattice.networks import fit
from examples.lattice.networks.loss import Objective, Soft
from examples.lattice.networks.model import LatticeNetwork
from examples.lattice.networks.samples import Samples
from examples.lattice.networks.size import Schema, Size
from examples.lattice.pipeline.stages import Compile, Watch, digest, eager, finish

SEPARATE, LONGER, ALL = "separate", "separate, longer", "all in one"
MERGED, UNTIED, CONSOLIDATED = "merged", "merged, untied", "consolidated"
CORRELATION = 0.1
TRAINING = {"recipes": (), "measure_calls": 0}
"""loka's options for training: in the model's own precision."""
Key = tuple[int, int]
"""A portfolio: domain and task."""
Backend = dict[str, Compile]
BACKENDS: dict[str, Backend] = {
    "eager": {"training": eager, "serving": eager},
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
    """One training: of which (domain, task) with which rows and labels, how large, on what, and how many steps, None
    for as many as the data ask for."""

    name: str
    keys: tuple[Key, ...]
    found: Samples
    size: Size
    objective: Objective
    steps: int | None = None


def arms_of(parts: dict[str, Any]) -> tuple[str, ...]:
    """What a run compares. parts: what stages.grouped found."""
    apart = (ALL,) if len(parts["groups"]) > 1 else ()
    return (SEPARATE, LONGER, *apart, MERGED, UNTIED, CONSOLIDATED)


def jobs(arm: str, found: Samples, size: Size, parts: dict[str, Any], knowledge: Knowledge | None) -> list[Job]:
    """The trainings of an arm. parts: what stages.grouped found. A group's network takes as many steps as one for all
    takes, however few rows the group has."""
    if arm not in (SEPARATE, LONGER, ALL, MERGED, UNTIED, CONSOLIDATED):
        raise ValueError(f"there is no arm {arm!r}; there are {', '.join(arms_of(parts))}")
    tied = replace(size, by_domain=False, untied=())
    every = tuple((d, t) for group in parts["groups"] for d, t in group)
    one = found.only([*every])
    if arm == ALL:
        return [Job("all in one", every, one, tied, Objective())]
    steps, made = steps_of(one), []
    if arm in (SEPARATE, LONGER):
        for d, t in every:
            name = f"{found.domains[d]}: {found.tasks[t]}"
            made.append(
                Job(name, ((d, t),), found.portfolio(d, t), tied, Objective(), steps if arm == LONGER else None)
            )
        return made
    for number, (group, untied) in enumerate(zip(parts["groups"], parts["untied"], strict=True)):
        keys = tuple((d, t) for d, t in group)
        name, its = f"group {number}", replace(size, untied=tuple(untied), towers=True)
        if arm == MERGED:
            made.append(Job(name, keys, found.only([*keys]), tied, Objective(), steps))
        elif arm == CONSOLIDATED and knowledge is not None:
            own = found.taught(knowledge).only([*keys])
            made.append(Job(name, keys, own, its, Objective(CORRELATION, Soft()), steps))
        else:
            made.append(Job(name, keys, found.only([*keys]), its, Objective(CORRELATION), steps))
    return made


def arm(which: list[Job], backend: Backend, seed: int, folder: Path | None, watch: Watch) -> dict[str, Any]:
    """Trains all models of an arm: scores by portfolio, FLOPs and parameters (those of ids that a model never learns
    do not count), CPU seconds of training without compiling. folder: where the weights are written, when all are
    trained: an arm that is stopped leaves those of an earlier one as they are."""
    scores: dict[str, dict[str, float]] = {}
    flops: list[float] = []
    tables = weights = 0
    cpu = 0.0
    models = []
    for job in which:
        torch.manual_seed(seed)
        model = LatticeNetwork(job.found.schema, job.size)
        call = backend["training"](model)
        rows = job.found.labelled
        cpu += finish(watch, model, job.found, rows, job.name, call, job.objective, job.steps)
        scores |= fit.judge(job.found, job.found.test, fit.predict(call, job.found, job.found.test))
        flops.append(fit.flops_of(model, job.found))
        tables += job.found.vocabulary() * job.size.width
        weights += fit.parameters(model)[1]
        models.append(model)
    files = [folder / f"{job.name}.safetensors" for job in which] if folder else []
    for path, model, job in zip(files, models, which, strict=False):
        save(model, job, path)
    return {
        "files": {path.name: digest(path) for path in files},
        "portfolios": scores,
        "groups": [job.keys for job in which],
        "flops_by_model": flops,
        "tables": tables,
        "weights": weights,
        "cpu_seconds": cpu,
    }


def save(model: LatticeNetwork, job: Job, path: Path) -> None:
    """Weights, and in the file's head all that is needed to make the network again."""
    said = {
        "schema": asdict(job.found.schema),
        "size": asdict(job.size),
        "fields": job.found.fields,
        "domains": job.found.domains,
        "tasks": job.found.tasks,
    }
    save_model(model, path, {"network": json.dumps(said)})


def load(path: Path) -> tuple[LatticeNetwork, dict[str, Any]]:
    """A network that `save` wrote, in eval mode, and what was said of it: fields, domains and tasks among the rest."""
    with safe_open(path, "pt") as file:
        said = tuples(json.loads(file.metadata()["network"]))
    schema, size = (kind(**said[name]) for kind, name in ((Schema, "schema"), (Size, "size")))
    model = LatticeNetwork(schema, size)
    load_model(model, path)
    return model.eval(), said


def tuples(body: Any) -> Any:
    """What JSON keeps as lists, as the tuples that they were."""
    if isinstance(body, dict):
        return {name: tuples(value) for name, value in body.items()}
    return tuple(map(tuples, body)) if isinstance(body, list) else body


def steps_of(found: Samples) -> int:
    """How many steps a network takes that learns from all rows with a label."""
    return fit.steps(len(found.labelled), found.passes.epochs, found.passes.batch)
