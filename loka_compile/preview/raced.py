"""loka's side by the plan that wins the race of trial/in_context.py; the clock is the modelled time of every launch.

Where even that, or the passes that need no plan, would be slower than what Inductor makes of the model as it is, all of
it is taken back: loka's side is never slower than Inductor's, as modelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from loka_compile.passes import PIPELINE
from loka_compile.preview.model import Rates, kernel_us
from loka_compile.preview.result import Kernel, Side, side_from_json
from loka_compile.spec.decision import Decision
from loka_compile.spec.plan import Plan
from loka_compile.trial.in_context import TRIES, Part, Step, back, families, fastest

SAME = 1e-6
"""Share of a step's time by which sums of equal terms may differ."""
Run = Callable[..., dict[str, Any]]
"""sides.run for one model on one target, from its name and, for loka, a plan on."""


def raced(run: Run, plan: Plan, rates: Rates, training: bool, inductor: Side) -> dict[str, Any]:
    """loka's side as sides.run has it, with the plan it follows and what was raced. Raises what the model raises."""
    gemms = {decision.site.fqn for decision in plan.decisions.values()}

    def clock(plan: Plan) -> Step:
        return step_of(side_from_json(run("loka", plan, products_only=True)).kernels, rates, gemms)

    best, step = fastest(plan, clock, TRIES[training])
    us, options, said = step.us, {}, [best.raced] if best.raced else []
    for other, passes in _without(best, training):
        found = side_from_json(run("loka", other, {"passes": passes}, products_only=True)).us(rates)
        if found < us * (1 - SAME):
            said.append(f"{found:.1f} us without {', '.join(passes)}, {us:.1f} with, modelled")
            us, best, options = found, other, {"passes": passes}
    against = inductor.us(rates)
    if us > against * (1 + SAME):
        said = [f"all is taken back, as it was slower than Inductor: {us:.1f} us a step, {against:.1f} by Inductor"]
        best, options = back(best, best.lowered, to_keep=True), {"passes": dict.fromkeys(PIPELINE.names, False)}
    best = replace(best, raced="; ".join(said))
    body, notes = run("loka", best, options), [f"the plan raced: {best.raced}"] if said else []
    notes += [f"to be compiled with options={{'plan': ..., 'passes': {options['passes']}}}"] if options else []
    return body | {"plan": best.to_json(), "options": options, "notes": [*body["notes"], *notes, *_changes(plan, best)]}


def _without(best: Plan, training: bool) -> Iterator[tuple[Plan, dict[str, bool]]]:
    """The plan, and none, without the pass that takes what it raises from Inductor, which may have fused it with more
    (a dropout behind an activation, say). In inference nothing is fused into a product without it."""
    if training:
        yield best, {"raise_norms": False}
        if best.lowered:
            yield back(best, best.lowered, to_keep=True), {"raise_norms": False}


def step_of(kernels: Sequence[Kernel], rates: Rates, gemms: set[str]) -> Step:
    """What a step takes, and for which of the GEMMs' modules: a kernel that works for none of them counts to the one
    that ran before it, as activations and norms behind a product do."""
    spent: dict[Part, float] = {}
    last = ""
    for kernel in kernels:
        us, _ = kernel_us(kernel.flops, kernel.bytes, kernel.dtype, rates)
        name = kernel.site.partition("#")[0]
        last = name if name in gemms else last
        part = last, kernel.phase == "backward"
        spent[part] = spent.get(part, 0.0) + us
    return Step(sum(spent.values()), spent)


def _changes(plan: Plan, best: Plan) -> Iterator[str]:
    """By family, what the race decided otherwise than single times had."""
    for family in families(plan):
        now: dict[Any, list[Decision]] = {}
        for each in family:
            chosen = next(d.chosen for d in best.decisions.values() if d.site.key == each.site.key)
            now.setdefault(chosen, []).append(each)
        for chosen, its in now.items():
            if chosen != its[0].chosen:
                more = f" and {len(its) - 1} like it" if len(its) > 1 else ""
                yield f"{its[0].site.key}{more}: {chosen}, not {its[0].chosen}, which was faster by single times only"
