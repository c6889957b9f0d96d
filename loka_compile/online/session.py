"""The session of one model's graph: measure, plan, watch, demote. See the package's docstring."""

from __future__ import annotations

import itertools
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from torch import Tensor

from loka_compile.inspect.compiled import CompiledGraph, forget
from loka_compile.online.history import History
from loka_compile.online.memory import Memory
from loka_compile.online.owner import Owner
from loka_compile.online.pace import Pace
from loka_compile.online.watcher import Watcher
from loka_compile.spec.decision import Decision
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan
from loka_compile.spec.site import Site

SAVE_EVERY = 10_000
"""Calls between two saves of the profile, in the background (LoKA Probe's interval)."""
GROWN = 8
"""Calls this many times as large as any that was measured get a plan of their own."""

_editions = itertools.count(1)


class Session:
    """The knowledge of one set of parameters in one graph, whatever the sizes of its inputs.

    Threads may use it at the same time; forked processes do not measure. edition: which plan is in force; code that was
    compiled under an edition in `valid` may run.
    """

    def __init__(self, memory: Memory, options: Options) -> None:
        self.options = options
        self.memory = memory
        self.pace = Pace(options.max_probe_overhead)
        self.owner = Owner(())
        self.history = History()
        self.watcher = Watcher(
            options,
            score_calls=options.measure_calls,
            on_backward=self.pace.add_extra,
            on_checked=lambda site, mere: self.history.saw(self.pace.calls, site, mere),
        )
        self.plan: Plan | None = None
        self.edition = 0
        self.valid: set[int] = set()
        self.lowers = False  # whether code that lowers something may run
        self.first_calls = 0
        self.silent = 0  # calls without code of a plan that nothing was learned from
        self.size = 0
        self.waiting: weakref.WeakSet[CompiledGraph] = weakref.WeakSet()  # shown until there is a plan
        self.busy = threading.Lock()
        self._lock = threading.Lock()
        self._saver: ThreadPoolExecutor | None = None
        self._pid = os.getpid()

    @property
    def here(self) -> bool:
        """Whether this is the process that it was made in."""
        return os.getpid() == self._pid

    @property
    def measuring(self) -> bool:
        return self.plan is None and self.first_calls < self.options.measure_calls

    def status(self) -> str:
        """How far it is and what measuring costs, for `explain`."""
        if self.measuring:
            text = f"online: {self.first_calls} of {self.options.measure_calls} calls measured, then a plan is made"
            why = "no rows, or one and the same value in all of them" if self.here else "of a forked process"
            return f"{text}; {self.silent:,} others told nothing: {why}" if self.silent else text
        pace = self.pace
        text = f"online: planned after {self.first_calls} measured calls"
        text += f"; of {pace.calls:,} since, {pace.measured} measured again"
        if not pace.budget:
            return f"{text} (max_probe_overhead=0)"
        share = f"{pace.overhead:.2%} of their time (budget {pace.budget:.2%})"
        return f"{text}, {share}, the next in about {pace.next_in:,}; kept in {self.memory.profile.parent}"

    def told(self) -> dict[str, Any]:
        """The same as plain data, with what happened so far, for a report."""
        pace, allowed = self.pace, self.options.error_budget
        figures = {"calls": pace.calls, "measured": pace.measured, "overhead": pace.overhead, "budget": pace.budget}
        return {"status": self.status(), **figures, "max_mere": allowed.max_mere, **self.history.as_dict()}

    # ------------------------------------------------------------ measure

    def count(self, size: int, seconds: float) -> None:
        """A call that can speak was measured."""
        with self._lock:
            self.pace.cost = seconds
            self.first_calls += 1
            self.size = max(self.size, size)

    def start_over(self, tensors: Sequence[Tensor]) -> None:
        """Other weights in the place of those it knew: what was learned of them says nothing of these."""
        with self._lock:
            self.owner.take(tensors)
            self.watcher.forget()
            self.history.note(self.pace.calls, "started over", "other weights in the place of those it knew")
            self.plan = self.watcher.plan = None
            self.first_calls, self.size, self.valid = 0, 0, set()

    def grow(self) -> None:
        """Calls have become much larger: they are measured for a plan of their own."""
        with self._lock:
            self.watcher.forget()
            self.history.note(self.pace.calls, "grown", f"calls of more than {GROWN} times the size are measured anew")
            self.plan, self.first_calls, self.size = None, 0, 0

    # ------------------------------------------------------------ plan

    def adopt(self, editions: Iterable[tuple[int, Plan, int]]) -> None:
        """Take over a plan that others run under (edition, plan, the size it is for) if it is within the budgets on
        what was measured here, and lowers nothing that was demoted here before."""
        demoted = self.memory.demoted()
        for edition, plan, size in editions:
            known = any(decision.recipes and decision.site.key in demoted for decision in plan.decisions.values())
            if self.size <= GROWN * size and not known and not self.watcher.strays(plan):
                with self._lock:
                    self.size = max(self.size, size)
                    self._put_in_force(plan, edition)
                return

    def given(self) -> Options:
        """The options to settle a graph's plan with: the plan in force, or else the profile learned so far."""
        if self.plan is not None:
            return replace(self.options, plan=self.plan.unpinned())
        profile = self.watcher.profile()
        self._in_background(lambda: self.memory.save(profile))
        return replace(self.options, profile=profile)

    def unplanned(self) -> Options:
        """The options to compile a graph with that lowers nothing."""
        return replace(self.options, plan=Plan(self.options.target, {}, origin="nothing"))

    def demoted(self) -> Mapping[str, str]:
        """Reasons by key of the sites that were demoted before, by this process or another."""
        return self.memory.demoted() if self.plan is None else {}

    def settled(self, plan: Plan) -> Plan:
        """A plan was made of what `given` gave: the first is in force, later ones are for their graph alone."""
        with self._lock:
            plan = replace(plan, origin=f"{self.first_calls} calls measured online")
            if self.plan is None:
                self._put_in_force(plan, next(_editions))
            return plan

    def _put_in_force(self, plan: Plan, edition: int) -> None:
        self.plan, self.edition = plan, edition
        lowered = f"{len(plan.lowered)} of {len(plan.decisions)} sites lowered"
        self.history.note(self.pace.calls, "planned", f"{lowered}; {self.first_calls} calls were measured")
        self.valid.add(edition)
        self.watcher.plan = watched = _watched(plan, self.watcher.plan)
        self.lowers = watched.lowers
        for graph in self.waiting:
            forget(graph)
        self.waiting.clear()

    # ------------------------------------------------------------ watch and demote

    def called(self, seconds: float) -> None:
        self.pace.add_call(seconds)
        if self.pace.calls % SAVE_EVERY == 0:
            self._in_background(lambda: self.memory.save(self.watcher.profile()))

    def demote(self) -> bool:
        """Keep what strayed since the last call from now on; whether there was any of it."""
        strayed = self.watcher.take_strayed()
        if not strayed or self.plan is None:
            return False
        with self._lock:
            watched = self.watcher.plan or self.plan
            strayed = [each for each in strayed if _is_lowered(watched.find(each.decision.site))]
            if not strayed:
                return False
            when = f"demoted on {time.strftime('%Y-%m-%d')} after {self.pace.calls:,} calls"
            reasons = {each.decision.site.key: f"{when}: {each.reason}" for each in strayed}
            for each in strayed:
                site, reason = each.decision.site, reasons[each.decision.site.key]
                self.plan, watched = _demoted(self.plan, site, reason), _demoted(watched, site, reason)
                self.history.note(self.pace.calls, "demoted", f"{site.key}: {each.reason}")
            self.watcher.plan, self.lowers = watched, watched.lowers
            self.memory.demote(reasons)
            self.edition = next(_editions)
            self.valid = {self.edition}
        for each in strayed:
            key = each.decision.site.key
            warnings.warn(
                f"loka: {key} strayed in {each.decision.chosen} and is kept as it was from now on: {reasons[key]}. "
                f"Remembered in {self.memory.demotions}",
                stacklevel=2,
            )
        return True

    def _in_background(self, job: Callable[[], None]) -> None:
        """One thread, made when first needed; Python waits for it at exit."""
        if not self.here:
            return
        if self._saver is None:
            self._saver = ThreadPoolExecutor(1, thread_name_prefix="loka-save")
        self._saver.submit(job)


def _demoted(plan: Plan, site: Site, reason: str) -> Plan:
    decision = plan.find(site)
    return plan if decision is None else plan.with_decision(decision.demoted(reason))


def _watched(plan: Plan, before: Plan | None) -> Plan:
    """The plan to watch: what an earlier one lowers may still run."""
    earlier = {} if before is None else before.decisions
    lowered = {key: old for key, old in earlier.items() if old.recipes and not _is_lowered(plan.find(old.site))}
    return replace(plan, decisions={**plan.decisions, **lowered}) if lowered else plan


def _is_lowered(decision: Decision | None) -> bool:
    return decision is not None and bool(decision.recipes)
