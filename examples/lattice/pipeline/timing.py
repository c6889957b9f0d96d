"""What a training step and a served batch cost under each backend: CPU time, all of them taking turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import ceil

import torch

from examples.lattice.networks import fit
from examples.lattice.networks.model import LatticeNetwork
from examples.lattice.networks.untie import for_domain
from examples.lattice.pipeline.arms import BACKENDS, Job
from examples.lattice.pipeline.stages import Watch
from examples.metrics import Race

WARM_UP = 8  # loka measures its first calls, and may compile again after them
Calls = dict[str, dict[str, Callable[[], object]]]
"""By models and backend."""
Times = dict[str, dict[str, float]]
"""Median milliseconds of CPU time, by models and backend."""


def timing(
    models: dict[str, list[Job]], backends: Sequence[str], batch: int, rounds: int, watch: Watch
) -> dict[str, Times]:
    """CPU milliseconds of "training", a step of the first network of each arm, and of "serving", a batch of rows of the
    first domain through all networks that have one of its tasks.

    models: the trainings of each arm, by its name. Weights are drawn: what a product costs does not depend on them.
    """
    served = {name: {each: serving_of(which, each, batch) for each in backends} for name, which in models.items()}
    stepped = {
        name: {each: step_of(which[0], each, batch, rounds) for each in backends} for name, which in models.items()
    }
    with torch.no_grad():
        serving = raced(served, rounds, watch, "serving, in turns")
    return {"training": raced(stepped, rounds, watch, "training, in turns"), "serving": serving}


def step_of(job: Job, backend: str, batch: int, rounds: int) -> Callable[[], object]:
    """One step of training at each call, of which there may be as many as `rounds` and the warm-up: batch, forward,
    backward, Adam."""
    torch.manual_seed(0)
    model = LatticeNetwork(job.found.schema, job.size)
    call = BACKENDS[backend]["training"](model)
    rows = job.found.labelled
    epochs = ceil((WARM_UP + rounds) / fit.steps(len(rows), 1, batch))
    losses = fit.train(model, call, job.found, rows, job.objective, epochs=epochs, batch=batch)
    return lambda: next(losses)


def serving_of(which: list[Job], backend: str, batch: int) -> Callable[[], object]:
    """All tasks of a batch of rows of the first domain at each call."""
    calls = []
    for job in which:
        rows = (job.found.inputs.domain == 0).nonzero()[:, 0]
        if len(rows) and any(domain == 0 for domain, _ in job.keys):
            model = for_domain(LatticeNetwork(job.found.schema, job.size), 0).eval()
            inputs, _ = job.found.batch(rows[torch.arange(batch) % len(rows)])
            calls.append((BACKENDS[backend]["serving"](model), inputs))
    return lambda: [call(*inputs) for call, inputs in calls]


def raced(calls: Calls, rounds: int, watch: Watch, title: str) -> Times:
    every = {f"{name}, {backend}": call for name, of in calls.items() for backend, call in of.items()}
    race = Race(every, clock=time.process_time)
    for _ in watch(race.rounds(rounds, warm_up=WARM_UP), rounds, f"{title} (compiles first)"):
        pass
    return {name: {backend: race.ms(f"{name}, {backend}") for backend in of} for name, of in calls.items()}
