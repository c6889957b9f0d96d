"""The session of one graph: measure, plan, watch, demote. See the package's docstring."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from loka_compile import compat
from loka_compile.dispatch.plan import Plan
from loka_compile.graph.rerun import own_inputs, written_inputs
from loka_compile.graph.sites import module_name
from loka_compile.inspect.compiled import CompiledGraph, forget
from loka_compile.online.memory import Memory
from loka_compile.online.owners import Owners, speaks
from loka_compile.online.pace import Pace
from loka_compile.online.watcher import Strayed, Watcher
from loka_compile.options import Options
from loka_compile.probe.session import EAGER_RANDOM

SAVE_EVERY = 10_000
"""Calls between two saves of the profile, in the background (LoKA Probe's interval)."""

_sessions: weakref.WeakValueDictionary[Any, Session] = weakref.WeakValueDictionary()  # lives with the compiled code


def session_of(gm: fx.GraphModule, inputs: Sequence[Any], options: Options) -> Session | None:
    """The graph's session, an old one if it was compiled before. None where there is nothing to do online: with a
    plan or a profile, with `measure_calls=0`, without recipes or real inputs, or outside a compilation by Dynamo."""
    if options.plan is not None or options.profile is not None or not (options.measure_calls and options.recipes):
        return None
    if any(compat.is_fake(value) for value in inputs) or not compat.can_guard():
        return None
    parameters = [value for value in inputs if isinstance(value, nn.Parameter)]
    structure = structure_of(gm, parameters)
    key = structure, options.fingerprint, tuple(map(id, parameters))
    session = _sessions.get(key)
    if session is None or not session.watches(parameters):
        session = _sessions[key] = Session(structure, options, parameters)
    return session


def structure_of(gm: fx.GraphModule, parameters: Sequence[Tensor]) -> str:
    """Digest of what a graph does to tensors, equal in every process and for every batch size."""
    steps = [
        (_name(node.target), module_name(node))
        for node in gm.graph.nodes
        if node.op not in ("placeholder", "output") and isinstance(node.meta.get("example_value"), Tensor)
    ]
    shapes = [(tuple(parameter.shape), str(parameter.dtype)) for parameter in parameters]
    return hashlib.sha256(repr((steps, shapes, torch.is_grad_enabled())).encode()).hexdigest()[:24]


def _name(target: Any) -> str:
    """A name without an address in it."""
    return target if isinstance(target, str) else f"{target.__module__}.{getattr(target, '__name__', target)}"


class Session:
    """One graph of one model. Threads may call its callables at the same time; forked processes do not measure."""

    def __init__(self, structure: str, options: Options, parameters: Sequence[nn.Parameter]) -> None:
        self.options = options
        self.memory = Memory(structure)
        self.pace = Pace(options.max_probe_overhead)
        self.plan: Plan | None = None
        self.epoch = 0
        self.first_calls = 0
        self._watcher = Watcher(options, score_calls=options.measure_calls, on_backward=self.pace.add_extra)
        self._parameters = [weakref.ref(parameter) for parameter in parameters]
        self._graphs: weakref.WeakSet[CompiledGraph] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._busy = threading.Lock()
        self._saver: ThreadPoolExecutor | None = None
        self._pid = os.getpid()

    @property
    def measuring(self) -> bool:
        return self.plan is None and self.first_calls < self.options.measure_calls

    def watches(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Whether these are the parameters it was made for: an id may have been given away again."""
        return all(known() is parameter for known, parameter in zip(self._parameters, parameters, strict=True))

    def status(self) -> str:
        """How far it is and what measuring costs, for `explain`."""
        if self.measuring:
            return f"online: {self.first_calls} of {self.options.measure_calls} calls measured, then a plan is made"
        pace = self.pace
        text = f"online: planned after {self.first_calls} measured calls"
        text += f"; of {pace.calls:,} since, {pace.measured} measured again"
        if not pace.budget:
            return f"{text} (max_probe_overhead=0)"
        share = f"{pace.overhead:.2%} of their time (budget {pace.budget:.2%})"
        return f"{text}, {share}, the next in about {pace.next_in:,}; kept in {self.memory.profile.parent}"

    # ------------------------------------------------------------ measure

    def measured(self, gm: fx.GraphModule, inputs: Sequence[Any], graph: CompiledGraph) -> Callable[..., Any]:
        """The graph op by op, watched."""
        run = self._captured(gm, inputs)
        self._belongs(graph)

        def call(*args: Any) -> Any:
            if not speaks(args):  # a health check: served, and nothing is learned from it
                with self._watcher.looking_away():
                    return run(*args)
            start = time.perf_counter()
            out = run(*args)
            with self._lock:
                self.pace.cost = time.perf_counter() - start
                self.first_calls += 1
                if self.first_calls == self.options.measure_calls:
                    self._move()
            return out

        return call

    # ------------------------------------------------------------ plan

    def given(self) -> Options:
        """The options to settle the plan with: the plan in force, or else the profile learned so far."""
        if self.plan is not None:
            return replace(self.options, plan=self.plan.unpinned())
        profile = self._watcher.profile()
        self._in_background(lambda: self.memory.save(profile))
        return replace(self.options, profile=profile)

    @property
    def tangents(self) -> Mapping[str, Tensor]:
        """Gradients of the graph's outputs that were seen last."""
        return self._watcher.tangents

    def demoted(self) -> Mapping[str, str]:
        """Reasons by key of the sites that were demoted before, by this process or another."""
        return self.memory.demoted() if self.plan is None else {}

    def adopted(self, plan: Plan) -> Plan:
        """The plan in force from now on: what was demoted meanwhile stays so."""
        with self._lock:
            before = self.plan.decisions if self.plan is not None else {}
            for key, old in before.items():
                new = plan.decisions.get(key)
                if new is not None and not (old.lowered or old.ranges) and (new.lowered or new.ranges):
                    plan = plan.with_decision(old)
            self.plan = self._watcher.plan = replace(plan, origin=f"{self.first_calls} calls measured online")
            return self.plan

    # ------------------------------------------------------------ watch

    def watched(
        self, compiled: Callable[..., Any], gm: fx.GraphModule, inputs: Sequence[Any], graph: CompiledGraph
    ) -> Callable[..., Any]:
        """The compiled graph; now and then a call is measured again.

        In inference beside the compiled call, whose result counts. In training in its place, as the backward's
        operands are only seen by running it. Traced here and now: while one thread traces, torch refuses the calls of
        the others.

        A call by other parameters than those of the plan (another instance, a checkpoint that was loaded) runs op by
        op, so that its result is right whatever the plan; after as many of these as the first calls the plan holds for
        them too, unless a site strays.
        """
        self._belongs(graph)
        if self.plan is None or not any(d.lowered or d.ranges for d in self.plan.decisions.values()):
            return compiled  # as written: nothing can stray
        training = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
        run = self._captured(gm, inputs)
        written = written_inputs(gm.graph)
        again = run if training else self._beside(run, inputs, written)
        owners = Owners(inputs, written)

        def call(*args: Any) -> Any:
            self._demote(self._watcher.take_strayed())
            if not owners.know(args, training):
                out = run(*args)
                strayed = self._watcher.take_strayed()
                self._demote(strayed)
                if not strayed and speaks(args):
                    owners.checked(args, self.options.measure_calls)
                return out
            hooked = training and compat.saved_tensors_are_hooked()  # a recomputation runs what its forward ran
            if not hooked and os.getpid() == self._pid and self.pace.due() and self._busy.acquire(blocking=False):
                try:
                    start = time.perf_counter()
                    out = again(*args)
                    self.pace.add_measured(time.perf_counter() - start)
                finally:
                    self._busy.release()
                if training:
                    return out
            start = time.perf_counter()
            out = compiled(*args)
            self.pace.add_call(time.perf_counter() - start)
            if self.pace.calls % SAVE_EVERY == 0:
                self._in_background(lambda: self.memory.save(self._watcher.profile()))
            return out

        return call

    def _captured(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """The graph, forward and backward, op by op under the watcher's eyes."""
        joint, inner = self._watcher.joint, self._watcher.inner
        return compat.capture(gm, inputs, joint=joint, inner=inner, patches=EAGER_RANDOM)

    def _beside(
        self, run: Callable[..., Any], inputs: Sequence[Any], written: Collection[int]
    ) -> Callable[..., None]:
        """The graph op by op, leaving inputs and random state as they are."""
        devices = sorted({x.get_device() for x in inputs if isinstance(x, Tensor) and x.is_cuda})

        def beside(*args: Any) -> None:
            with torch.random.fork_rng(devices):
                run(*own_inputs(args, written))

        return beside

    # ------------------------------------------------------------ demote

    def _demote(self, strayed: Sequence[Strayed]) -> None:
        if not strayed or self.plan is None:
            return
        with self._lock:
            found = [(each, self.plan.find(each.decision.site)) for each in strayed]
            lowered = [(each, decision) for each, decision in found if decision is not None and decision.recipes]
            reasons = {}
            for each, decision in lowered:
                reason = f"demoted on {time.strftime('%Y-%m-%d')} after {self.pace.calls:,} calls: {each.reason}"
                reasons[decision.site.key] = reason
                self.plan = self._watcher.plan = self.plan.with_decision(decision.demoted(reason))
            if not reasons:
                return
            self.memory.demote(reasons)
            self._move()
        for (_, decision), reason in zip(lowered, reasons.values(), strict=True):
            warnings.warn(
                f"loka: {decision.site.key} strayed in {decision.chosen} and is kept as it was from now on: {reason}. "
                f"Remembered in {self.memory.demotions}",
                stacklevel=2,
            )

    # ------------------------------------------------------------ epochs

    def _belongs(self, graph: CompiledGraph) -> None:
        """The code compiled now holds while this epoch lasts."""
        epoch = self.epoch
        graph.status = self.status
        self._graphs.add(graph)
        compat.guard_on(lambda: self.epoch == epoch, f"loka: {self.memory.demotions.stem} has another plan by now")

    def _move(self) -> None:
        self.epoch += 1
        for graph in self._graphs:
            forget(graph)
        self._graphs.clear()

    def _in_background(self, job: Callable[[], None]) -> None:
        """One thread, made when first needed; Python waits for it at exit."""
        if os.getpid() != self._pid:
            return
        if self._saver is None:
            self._saver = ThreadPoolExecutor(1, thread_name_prefix="loka-save")
        self._saver.submit(job)
