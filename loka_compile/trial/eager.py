"""Never slower than what the user had: the graph as it runs in eager races the code that was generated.

Few graphs are faster in eager: where generated loops are slow on a processor, or where calls take so little that what
stands around compiled code is most of it. Dynamo hands over the graph as it was written, and it is called in place of
compiled code, so both are counted with all that one call takes. It costs a few calls, where it is not close.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from loka_compile import compat
from loka_compile.dispatch import kept_times
from loka_compile.graph.facts import Reading
from loka_compile.spec.options import Options
from loka_compile.trial.laps import fastest_us
from loka_compile.trial.race import Raced, all_kept, can_race, digest_of, where_taken

CLEARLY = 1.03
"""How many times faster eager has to be."""
LOOKS = 2
"""Calls that tell whether it may be."""


def eager_or_compiled(
    raced: Raced,
    gm: fx.GraphModule,
    reading: Reading,
    inputs: Sequence[Any],
    options: Options,
    device: str,
    written: Collection[int] = (),
) -> Raced:
    """The compiled graph, or the graph of Dynamo run op by op where that is clearly faster.

    gm: the graph as it was written, but for what options change of the model; reading: of it. The plan that comes back
    with it lowers nothing.
    """
    if device != "cpu" or compat.is_ahead_of_time() or not can_race(raced.plan, inputs, options, device):
        return raced
    if reason := _reason_against(reading, inputs):
        return replace(raced, eager=f"not raced against eager: {reason}")
    key = f"race eager {digest_of([raced.plan], 0, inputs)} {hashlib.sha256(gm.code.encode()).hexdigest()[:24]}"
    ratio, busy = kept_times.recall(key), False
    if ratio is None:
        ratio, settled, busy = _times_faster(raced, gm, inputs, written)
        if settled:
            kept_times.remember(key, ratio, busy)
    if ratio < CLEARLY:
        return raced
    said = f"run op by op, as in eager: {ratio:.2f}x the speed of the code generated for it, {where_taken(busy)}"
    plan = replace(all_kept(raced.plan, said), raced=said)
    return Raced(plan, (gm.forward, []))


def _times_faster(
    raced: Raced, gm: fx.GraphModule, inputs: Sequence[Any], written: Collection[int]
) -> tuple[float, bool, bool]:
    """How many times faster eager is, whether that is sure, and whether the machine was busy.

    Asked after LOOKS calls of each if eager is clearly slower.
    """
    calls, values = [raced.built[0], gm.forward], [compat.concrete(value) for value in inputs]
    with compat.outside_compilation():
        times = fastest_us(calls, values, written, LOOKS, LOOKS)
        if 1 / 1.25 < times[0] / times[1] < math.inf or not times.settles(times[0] / times[1]):
            times = fastest_us(calls, values, written)
    ratio = times[0] / times[1]
    return ratio, times.settles(ratio / CLEARLY), times.noisy


def _reason_against(reading: Reading, inputs: Sequence[Any]) -> str:
    """Why the graph may not run op by op; empty if it may."""
    if any(isinstance(value, torch.SymInt) for value in inputs):
        return "it is for any batch, and where eager is faster at a small one it is not at a large one"
    for node in reading.graph.nodes:
        if compat.calls_graphs(node):
            return f"{node.name} runs a graph of its own"
        if compat.switches_functorch(node):
            return f"{node.name} enters or leaves a transform"
        fact = reading.facts.get(node)
        if fact is not None and fact.reason:
            return f"{node.name} cannot be read: {fact.reason}"
        if fact is not None and fact.random:  # the calls before drew what generated code draws
            return f"{node.name} draws random numbers, and eager would draw other ones"
    return ""
