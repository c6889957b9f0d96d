"""The callable of one Dynamo graph: it changes what it runs inside, and Dynamo never compiles for that.

Dynamo hands one graph to all who share its code. Who calls is known by the parameters at the call, and each has a
session (session.py). Its first calls run op by op and are measured; then the graph is compiled, at a call, outside of
Dynamo (compat/anew.py), so that no guard, no entry of Dynamo's cache and no stance has a say in it.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from loka_compile import compat
from loka_compile.graph.facts import Reading
from loka_compile.graph.rerun import is_training, own_inputs
from loka_compile.inspect.compiled import CompiledGraph, forget, show
from loka_compile.online.owner import Owner, speaks
from loka_compile.online.places import Places
from loka_compile.online.session import GROWN, Session
from loka_compile.online.sessions import Sessions
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan

QUIET = 8
"""Calls that nothing is learned from run op by op, as measured ones do. After so many they are compiled without a
plan: slower than Inductor for good is worse than one compilation."""

Make = Callable[
    [Options, Sequence[Any], Mapping[str, str], Callable[[Plan], Plan], Mapping[str, Tensor]],
    tuple[Callable[..., Any], CompiledGraph],
]
"""Settles the plan from options, without what was demoted, and compiles the graph for inputs. The plan settled goes
through the function; the last argument has gradients of the graph's outputs that were seen."""


@dataclass(frozen=True, eq=False)
class Code:
    """The code compiled under one edition of a plan: the sizes it holds for, and the largest call it serves.

    plan: that of the session, which others who call the graph may take over.
    """

    call: Callable[..., Any]
    graph: CompiledGraph
    edition: int
    plan: Plan
    holds: compat.Holds
    size: int
    lowers: bool


@dataclass(eq=False)
class Use:
    """One who calls: the session, the graph op by op, what `explain` shows, and what checkpoints began with."""

    session: Session
    measured: list[tuple[Callable[..., Any], compat.Holds]] = field(default_factory=list)
    shown: dict[int, CompiledGraph] = field(default_factory=dict)
    begun: weakref.WeakKeyDictionary[Any, Callable[..., Any]] = field(default_factory=weakref.WeakKeyDictionary)


class Calls:
    """The calls of one Dynamo graph. reading: of the graph, not kept. written: places of the inputs that it writes.
    graph: what `explain` shows of it before there is a plan."""

    def __init__(
        self,
        gm: fx.GraphModule,
        reading: Reading,
        inputs: Sequence[Any],
        written: Collection[int],
        graph: CompiledGraph,
        make: Make,
        sessions: Sessions,
    ) -> None:
        self._gm, self._graph, self._make, self._sessions = gm, graph, make, sessions
        self._written = written
        self._places = Places.of(reading, inputs)
        self._training = is_training(inputs)
        self._uses: dict[tuple[int, ...], Use] = {}
        self._code: list[Code] = []
        self._unplanned: list[tuple[Callable[..., Any], compat.Holds]] = []
        self._usual: tuple[tuple[int, ...], Session, Code] | None = None
        self._fixed = not any(isinstance(value, torch.SymInt) for value in inputs)
        self._making = threading.Lock()
        # Traced here and now, so that Dynamo guards what it asks of sizes. The inputs are fakes in Dynamo's DDP
        # optimizer, which calls what it is given once with fakes too: then the session's owner comes later.
        self._fakes = any(map(compat.is_fake, inputs))
        session = sessions.new() if self._fakes else self._use(inputs).session
        self._first = session, self._captured(gm, inputs, session)

    def run(self, *args: Any) -> Any:
        if (usual := self._usual) is not None:  # a small graph's call takes 100 us, so this is kept short
            parameters, session, planned = usual
            known = tuple([id(args[i]) for i in self._places.parameters]) == parameters and session.owner.alive
            if known and not session.lowers and planned.edition in session.valid:
                return planned.call(*args)
        if self._fakes and any(map(compat.is_fake, args)):
            return self._first[1](*args)
        use = self._use(args)
        session = use.session
        region = compat.checkpoint_region() if self._training else None
        if region is not None and region in use.begun:  # a recomputation runs what its forward ran
            with session.watcher.looking_away():
                return use.begun[region](*args)
        if session.watcher.strayed and session.demote():
            self._hide(use, args)
        size = sum([args[i].numel() for i in self._places.data])
        code = self._code_for(use, args, size) or self._due(use, args, size)
        if code is not None and id(code) not in use.shown:
            self._show(use, args, id(code), code.graph)
        if code is None:
            return self._measure(use, args, size, region)
        if region is not None:
            use.begun[region] = code.call
        if code.lowers:
            return self._serve(use, code, args, region is not None)
        if self._fixed and not self._training and not session.lowers:
            self._usual = tuple([id(args[i]) for i in self._places.parameters]), session, code
        return code.call(*args)

    # ------------------------------------------------------------ who calls

    def _use(self, args: Sequence[Any]) -> Use:
        use = self._uses.get(tuple([id(args[i]) for i in self._places.parameters]))  # at every call: kept short
        if use is None:
            use = self._meet(args)
        session = use.session
        if session.plan is None or session.lowers or session.owner.gone:
            weights = [args[i] for i in self._places.weights]
            if session.owner.replaced(weights, self._training, session.measuring) and session.here:
                session.start_over(weights)
                self._hide(use, args)
        return use

    def _meet(self, args: Sequence[Any]) -> Use:
        """Who has not called this graph before. The session may be one of another graph, for other sizes."""
        self._uses = {key: use for key, use in self._uses.items() if use.session.owner.alive}
        parameters, weights = ([args[i] for i in places] for places in (self._places.parameters, self._places.weights))
        session = self._sessions.find(parameters, len(weights))
        if session is None:
            session = self._first[0] if self._fakes and not self._uses else self._sessions.new()
            session.owner = Owner(weights, *self._places.among_weights(self._written))
            self._sessions.keep(parameters, len(weights), session)
        use = self._uses[tuple(map(id, parameters))] = Use(session)
        self._show_waiting(use, args)
        return use

    # ------------------------------------------------------------ measure

    def _measured(self, use: Use, args: Sequence[Any]) -> Callable[..., Any]:
        """The graph op by op under the session's eyes."""
        session, captured = self._first
        if use.session is session:
            return captured
        run = next((run for run, holds in use.measured if holds(args)), None)
        if run is None:
            with compat.compiling_anew(self._gm, args) as anew:
                run = self._captured(self._gm, anew.inputs, use.session)
            use.measured.append((run, anew.holds()))
        return run

    def _captured(self, gm: fx.GraphModule, inputs: Sequence[Any], session: Session) -> Callable[..., Any]:
        watcher, twin = session.watcher, compat.copy_dynamo_graph(gm)
        return compat.capture(twin, inputs, joint=watcher.joint, inner=watcher.inner)

    def _measure(self, use: Use, args: Sequence[Any], size: int, region: Any) -> Any:
        session = use.session
        learns = session.measuring and session.here and speaks([args[i] for i in self._places.data])
        run = (None if learns else self._quiet(session, args)) or self._measured(use, args)
        if region is not None:
            use.begun[region] = run
        if not learns:
            with session.watcher.looking_away():  # a health check, say: served, and nothing is learned from it
                return run(*args)
        start = time.perf_counter()
        out = run(*args)
        session.count(size, time.perf_counter() - start)
        return out

    def _quiet(self, session: Session, args: Sequence[Any]) -> Callable[..., Any] | None:
        """For a call that nothing is learned from: once there were QUIET of them, compiled code that lowers nothing.
        None: it runs op by op. All calls may be such, of a model that reads ids and a mask of ones, or in a process
        that was forked before there was a plan."""
        session.silent += 1
        if session.silent <= QUIET or (session.here and not session.measuring):  # then its plan is being compiled
            return None
        known = next((call for call, holds in self._unplanned if holds(args)), None)
        if known is not None or not self._making.acquire(blocking=False):
            return known
        try:
            with compat.compiling_anew(self._gm, args) as anew:
                call, _ = self._make(session.unplanned(), anew.inputs, {}, lambda plan: plan, {})
            self._unplanned.append((call, anew.holds()))
            return call
        finally:
            self._making.release()

    # ------------------------------------------------------------ plan

    def _code_for(self, use: Use, args: Sequence[Any], size: int) -> Code | None:
        valid = use.session.valid
        return next((c for c in self._code if c.edition in valid and size <= c.size and c.holds(args)), None)

    def _due(self, use: Use, args: Sequence[Any], size: int) -> Code | None:
        """Code for this call, compiled now if there is a plan to be made or one in force; None: it is measured."""
        session = use.session
        if not session.here or not self._making.acquire(blocking=False):
            return None
        try:
            if session.plan is not None and size > GROWN * session.size:
                session.grow()
            if session.measuring:
                return None
            if session.plan is None:
                session.adopt((code.edition, code.plan, code.size // GROWN) for code in self._code)
            return self._code_for(use, args, size) or self._compile(use, args, size)
        finally:
            self._making.release()

    def _compile(self, use: Use, args: Sequence[Any], size: int) -> Code:
        session = use.session
        with compat.compiling_anew(self._gm, args) as anew:
            call, graph = self._make(
                session.given(), anew.inputs, session.demoted(), session.settled, session.watcher.tangents
            )
        size, lowers = GROWN * max(session.size, 1), graph.stages.plan.lowers
        plan = session.plan or graph.stages.plan
        code = Code(call, graph, session.edition, plan, anew.holds(), size, lowers)
        alive = {edition for each in self._uses.values() for edition in each.session.valid}
        self._code = [each for each in self._code if each.edition in alive] + [code]
        return code

    # ------------------------------------------------------------ watch

    def _serve(self, use: Use, code: Code, args: Sequence[Any], checkpointed: bool) -> Any:
        """Compiled code that lowers something; now and then the call is measured again.

        In inference beside the compiled call, whose result counts. In training in its place, as the backward's
        operands are only seen by running it; not where what it saves goes through hooks.
        """
        session = use.session
        hooked = checkpointed or (self._training and compat.saved_tensors_are_hooked())
        if not hooked and session.here and session.pace.due() and session.busy.acquire(blocking=False):
            try:
                start = time.perf_counter()
                out = self._again(use, args)
                session.pace.add_measured(time.perf_counter() - start)
            finally:
                session.busy.release()
            if self._training:
                return out
        start = time.perf_counter()
        out = code.call(*args)
        session.called(time.perf_counter() - start)
        return out

    def _again(self, use: Use, args: Sequence[Any]) -> Any:
        run = self._measured(use, args)
        if self._training:
            return run(*args)
        with torch.random.fork_rng(compat.cuda_devices(args)):
            return run(*own_inputs(args, self._written))

    # ------------------------------------------------------------ what explain shows

    def _show(self, use: Use, args: Sequence[Any], key: int, graph: CompiledGraph) -> None:
        own = [args[i] for i in self._places.parameters]
        use.shown[key] = graph.belonging_to(own, use.session.status, use.session.told)
        show(use.shown[key])

    def _hide(self, use: Use, args: Sequence[Any]) -> None:
        """Forget the compiled code: something else runs now."""
        self._usual = None
        for graph in use.shown.values():
            forget(graph)
        use.shown.clear()
        self._show_waiting(use, args)

    def _show_waiting(self, use: Use, args: Sequence[Any]) -> None:
        if use.session.plan is None:
            self._show(use, args, 0, self._graph)
            use.session.waiting.add(use.shown[0])
