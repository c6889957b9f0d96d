"""Watching operands of real calls: statistics, and whether a lowered site is still within its error budgets."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from loka_compile import compat
from loka_compile.probe.distribution import generator_for
from loka_compile.probe.observer import COLUMNS, Observer, chosen_recipes
from loka_compile.probe.pairs import PAIRS
from loka_compile.probe.score import ErrorScore, emulate, exact, product, score, subsample
from loka_compile.spec.decision import Decision
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Site

ROWS = 256
"""Most rows of a call that a site is scored on."""


@dataclass(frozen=True)
class Strayed:
    """A lowered site whose error left the budgets."""

    decision: Decision
    error: ErrorScore
    reason: str


class Watcher(Observer):
    """An Observer for several threads that also checks the plan in force, if there is one.

    on_backward: told how many seconds each backward took. on_checked: told the key of a lowered site and the MERE it
    was just seen with.
    """

    def __init__(
        self,
        options: Options,
        score_calls: int,
        on_backward: Callable[[float], None],
        on_checked: Callable[[str, float], None] = lambda site, mere: None,
    ) -> None:
        super().__init__(chosen_recipes(options.recipes), rows=ROWS, score_calls=score_calls, seed=0, pairs=PAIRS // 4)
        self.options = options
        self.on_backward = on_backward
        self.on_checked = on_checked
        self.plan: Plan | None = None
        self.strayed: dict[str, Strayed] = {}
        self.tangents: dict[str, Tensor] = {}
        """Gradients of the graph's outputs in the backward that was measured last, by the names of its inputs."""
        self._lock = threading.RLock()
        self._picks = generator_for(0, "drift")
        self._away = threading.local()

    @contextlib.contextmanager
    def looking_away(self) -> Iterator[None]:
        """Learn nothing from what this thread runs meanwhile."""
        self._away.now = True
        try:
            yield
        finally:
            self._away.now = False

    def inner(self, gm: fx.GraphModule, is_backward: bool) -> Callable[..., Any]:
        compat.draw_like_inductor(gm)
        run = super().inner(gm, is_backward)

        def timed(args: list[Any]) -> Any:
            start = time.perf_counter()
            self._keep_tangents(gm.graph, args)
            out = boxed_run(args)
            self.on_backward(time.perf_counter() - start)
            return out

        if is_backward:
            boxed_run, run.boxed_run = run.boxed_run, timed  # type: ignore[attr-defined]
        return run

    def _keep_tangents(self, graph: fx.Graph, args: list[Any]) -> None:
        if not getattr(self._away, "now", False):
            given = dict(zip(graph.find_nodes(op="placeholder"), args, strict=True))
            self.tangents = {node.name: given[node].detach() for node in compat.gradients_of_outputs(graph)}

    def observe(self, site: Site, lhs: Tensor, rhs: Tensor) -> None:
        if getattr(self._away, "now", False):
            return
        with self._lock:
            super().observe(site, lhs, rhs)
            decision = self.plan.find(site) if self.plan is not None else None
            if decision is not None and decision.recipes and lhs.numel() and rhs.numel():
                self._check(decision, lhs, rhs)

    def forget(self) -> None:
        """Forget what was seen: it is of other weights, or of much smaller calls."""
        with self._lock:
            sites = [record.site for record in self.records.values()]
            self.records, self.strayed, self.tangents = {}, {}, {}
            for site in sites:
                self._register(site)

    def strays(self, plan: Plan) -> str:
        """Why a plan is not within the budgets on what was scored so far; empty if it is."""
        with self._lock:
            for record in self.records.values():
                decision = plan.find(record.site)
                for recipe in () if decision is None else decision.recipes:
                    error = record.scores.get(recipe)
                    if error and (missed := self.options.error_budget.missed(error.mere, error.sqnr_db)):
                        return f"{record.site.key} in {recipe}: {'; '.join(missed)}"
            return ""

    def take_strayed(self) -> list[Strayed]:
        """The sites that left their budgets since the last time this was asked."""
        with self._lock:
            strayed, self.strayed = list(self.strayed.values()), {}
            return strayed

    def _check(self, decision: Decision, lhs: Tensor, rhs: Tensor) -> None:
        site = decision.site
        with exact():
            amax = lhs.abs().max().item(), rhs.abs().max().item()
            a, b = subsample(lhs.detach(), rhs.detach(), ROWS, COLUMNS, self._picks)
            error, reference = ErrorScore(), product(a, b)
            for recipe in decision.recipes:
                error = error.worst(score(emulate(RECIPES[recipe], a, b, site.gradient, amax), reference))
        self.on_checked(site.key, error.mere)
        missed = self.options.error_budget.missed(error.mere, error.sqnr_db)
        if missed:
            self.strayed[site.key] = Strayed(decision, error, "; ".join(missed))
