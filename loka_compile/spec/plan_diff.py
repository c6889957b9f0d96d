"""The difference of two plans: sites that came or went, and choices that are no longer the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loka_compile.spec.decision import Decision
from loka_compile.spec.plan import Plan


@dataclass(frozen=True)
class PlanDiff:
    """From plan a to plan b, by site key. `renumbered` counts sites where only numbers or reasons differ: times are
    measured anew each time, so these alone are no difference."""

    targets: tuple[str, str]
    only_a: Mapping[str, Decision]
    only_b: Mapping[str, Decision]
    changed: Mapping[str, tuple[Decision, Decision]]
    renumbered: int = 0

    def __bool__(self) -> bool:
        """Whether the plans differ in target, sites or choices."""
        return bool(self.targets[0] != self.targets[1] or self.only_a or self.only_b or self.changed)

    def __str__(self) -> str:
        same = f"numbers or reasons differ at {self.renumbered} sites with the same choice" if self.renumbered else ""
        if not self:
            return f"no difference in any choice; {same}" if same else "no difference"
        lines = []
        if self.targets[0] != self.targets[1]:
            lines.append(f"target: {self.targets[0]} -> {self.targets[1]}")
        lines += [f"- {key}: {decision.chosen}" for key, decision in self.only_a.items()]
        lines += [f"+ {key}: {decision.chosen} ({decision.reason})" for key, decision in self.only_b.items()]
        lines += [f"~ {key}: {_change(a, b)}" for key, (a, b) in self.changed.items()]
        lines += [same] if same else []
        return "\n".join(lines)


def diff(a: Plan, b: Plan) -> PlanDiff:
    """Compare two plans; the result is false where they agree, and prints as what a reviewer needs."""
    both = [(key, decision, b.decisions[key]) for key, decision in a.decisions.items() if key in b.decisions]
    changed = {key: (old, new) for key, old, new in both if old.chosen != new.chosen or _gemm(old) != _gemm(new)}
    return PlanDiff(
        targets=(a.target, b.target),
        only_a={key: decision for key, decision in a.decisions.items() if key not in b.decisions},
        only_b={key: decision for key, decision in b.decisions.items() if key not in a.decisions},
        changed=changed,
        renumbered=sum(key not in changed and old != new for key, old, new in both),
    )


def _gemm(decision: Decision) -> str:
    return f"{decision.site.shape} in {str(decision.site.dtype).removeprefix('torch.')}"


def _change(a: Decision, b: Decision) -> str:
    choice = f"{a.chosen} -> {b.chosen}" if a.chosen != b.chosen else f"{a.chosen}"
    gemm = f", {_gemm(a)} -> {_gemm(b)}" if _gemm(a) != _gemm(b) else ""
    return f"{choice}{gemm} ({b.reason})"
