"""A backend that judges every Dynamo graph: as it is and rewritten, it is run op by op in float64 on its own inputs.

    each pass of ours on Dynamo's graph, alone or behind those before it, for a CPU or a GPU
    what makes another model of it, against its twin (twins.py)
    those on ATen's graphs under a plan that lowers everything (lowered.py)

The passes see the program's own dtypes. Float64 runs both graphs, so that they may differ by its rounding only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from loka_compile.graph.rerun import is_training
from loka_compile.passes import PIPELINE, PassResult
from loka_compile.passes.base import Context, DynamoPass
from loka_compile.passes.dynamo import Change, Read, rewritten
from loka_compile.spec.plan import Plan
from tests.fuzz import twins
from tests.fuzz.lowered import Recipes, lowered
from tests.fuzz.values import Shaken, differ, run, shaky
from tests.fuzz.wide import InFloat64, wide

PASSES = (*PIPELINE.canonicalize, *PIPELINE.simplify, *PIPELINE.raising)
TARGETS = {"cpu": "cpu", "cuda": "h100"}

SHAKY = "rounding alone makes another value of it"
"""A note, where a pass's value differs and that says nothing."""

Values = list[Tensor | None]
Comparison = Callable[[Sequence[Any], Values], str]
"""What is wrong when a variant runs on these inputs, where the graph as written gives those values."""


@dataclass
class Verdict:
    """wrong: pass -> what is wrong. fired: how many graphs each rewrote. unsaid: why the program says nothing. graphs:
    Dynamo's, of all calls. notes: what was not as it is elsewhere."""

    wrong: dict[str, str] = field(default_factory=dict)
    fired: Counter[str] = field(default_factory=Counter)
    unsaid: str = ""
    graphs: int = 0
    notes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Choice:
    """What of all there is to judge. alone: each pass on the graph as written, not one after the other. mods: of those
    that make another model, the first that does something. recipes: of the plan under which it is lowered, None where
    it is not."""

    device: str
    alone: bool
    mods: tuple[tuple[DynamoPass, twins.Twin], ...]
    recipes: Recipes | None

    @classmethod
    def of(cls, number: int, training: bool, dynamic: bool) -> Choice:
        """By a number: all of it for each program would take its time."""
        device, rest = ("cuda", "cuda", "cuda", "cpu")[number % 4], number // 4
        alone, rest = rest % 6 == 0, rest // 6
        first, rest = ORDERS[rest % len(ORDERS)], rest // len(ORDERS)
        mods = tuple(twins.OF[place % len(twins.OF)] for place in range(first, first + len(twins.OF)))
        # There is more to do in training; with symbolic sizes that takes five times as long.
        lower = rest % 8 < (6 if training and not dynamic else 3)
        return cls(device, alone, mods, Recipes.of(rest // 8, device) if lower else None)


ORDERS = (0, 1, 2, 3, 2, 3)
"""Which of the mods is asked first; the last two find the least to do."""

EVERY = (
    Choice("cpu", True, twins.OF[:1], None),
    Choice("cpu", False, twins.OF[1:2], Recipes("cpu", ("int8_rowwise aten",))),
    Choice("cuda", True, twins.OF[2:3], None),
    Choice("cuda", False, twins.OF[3:], Recipes("cuda", ("fp8_rowwise triton",))),
    Choice("cuda", False, twins.OF[:1], Recipes("cuda", ("bf16 triton",))),
)
"""All passes, for the programs that are kept."""


@dataclass
class Judge:
    """number: chooses schedules. choices: what is judged. stacks: the modules whose layers are left out. again: see
    check.py. unsure: what is lowered is not what Dynamo's graph gives. skips: (stack, what was left out). results: of
    the graph as written, under "", and without layers of a stack. shaken: makes the values of the graph as written
    where each on the way is another by more than rounding."""

    verdict: Verdict
    number: int
    choices: tuple[Choice, ...]
    stacks: tuple[str, ...]
    again: bool
    unsure: bool = False
    skips: list[tuple[str, PassResult]] = field(default_factory=list)
    results: dict[str, Values] = field(default_factory=dict)
    read: Read = field(init=False)
    shaken: Callable[[], Values] = field(init=False)

    def backend(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        self.verdict.graphs += 1
        training, found = is_training(inputs), []
        self.read = Read.of(gm)
        for name, make in self._variants(gm, inputs, training):
            try:
                found += [(name, each) for each in make()]
            except Exception as error:
                if type(error).__module__.startswith("torch._dynamo"):
                    raise
                self.verdict.wrong[name] = f"crash: {type(error).__name__}: {error}"

        def call(*args: Any) -> Any:
            with torch.random.fork_rng(devices=()):
                self._compare(gm, found, args, training)
            return gm(*args)

        return call

    def _compare(
        self, gm: fx.GraphModule, found: Sequence[tuple[str, Comparison]], args: Sequence[Any], training: bool
    ) -> None:
        self.results[""] = wanted = run(wide(gm), args, training)
        self.shaken = cache(lambda: run(Shaken(wide(gm)).run, args, training))
        for name, compare in found:
            try:
                reason = compare(args, wanted)
            except Exception as error:
                reason = f"crash: {type(error).__name__}: {error}"
            if reason:
                self.verdict.wrong[name] = reason

    def _differ(self, found: Values, wanted: Values) -> str:
        """What differs, and would not by rounding alone."""
        reason = differ(found, wanted)
        if not reason or len(found) != len(wanted) or not (places := shaky(self.shaken(), self.results[""])):
            return reason
        steady = lambda values: [None if place in places else x for place, x in enumerate(values)]  # noqa: E731
        rest = differ(steady(found), steady(wanted))
        self.verdict.notes[SHAKY] += not rest
        return rest

    def _variants(
        self, gm: fx.GraphModule, inputs: Sequence[Any], training: bool
    ) -> Iterator[tuple[str, Callable[[], list[Comparison]]]]:
        """(name, what makes the comparisons)"""
        for choice in self.choices:
            yield from self._chosen(gm, inputs, training, choice)
        for stack in self.stacks:
            yield "compskip", lambda stack=stack: self._skipped(gm, stack, training)

    def _chosen(
        self, gm: fx.GraphModule, inputs: Sequence[Any], training: bool, choice: Choice
    ) -> Iterator[tuple[str, Callable[[], list[Comparison]]]]:
        latest, recipes = [gm], choice.recipes
        if choice.alone:
            for each in PASSES:
                yield each.name, lambda each=each: self._alone(gm, each, choice.device, training)
        else:
            yield "all", lambda: self._row(gm, choice.device, training, latest)
        for mod, twin in choice.mods:
            done: list[Comparison] = []
            yield mod.name, lambda mod=mod, twin=twin, done=done: self._adapted(gm, mod, twin, training, done)
            if done:
                break
        if recipes is not None:
            yield f"lowered, {choice.device}", lambda: self._lowered(gm, latest[0], inputs, recipes, training)

    def _passed(
        self, passes: Sequence[DynamoPass], device: str, training: bool
    ) -> tuple[fx.GraphModule, tuple[Change, ...]]:
        after, changes = rewritten(self.read, passes, Context(Plan(TARGETS[device], {}), device, training))
        return after.gm, changes

    def _alone(self, gm: fx.GraphModule, each: DynamoPass, device: str, training: bool) -> list[Comparison]:
        new, changes = self._passed((each,), device, training)
        if not self._fired(changes, device):
            return []
        return [lambda args, wanted: self._differ(run(wide(new), args, training), wanted)]

    def _row(self, gm: fx.GraphModule, device: str, training: bool, latest: list[fx.GraphModule]) -> list[Comparison]:
        """All of them, one after the other; what is wrong is filed under the first behind which it is."""
        latest[0], changes = self._passed(PASSES, device, training)
        fired = self._fired(changes, device)

        def compare(args: Sequence[Any], wanted: Values) -> str:
            reason = self._differ(run(wide(latest[0]), args, training), wanted)
            for change in fired if reason else ():
                after = fx.GraphModule(gm, change.after)
                if early := self._differ(run(wide(after), args, training), wanted):
                    self.verdict.wrong[change.name] = early
                    return ""
            return reason

        return [compare] if fired else []

    def _fired(self, changes: Sequence[Change], device: str) -> list[Change]:
        fired = [change for change in changes if change.result.rewrites]
        self.verdict.fired.update(f"{change.name}, {device}" for change in fired)
        return fired

    def _adapted(
        self, gm: fx.GraphModule, each: DynamoPass, twin: twins.Twin, training: bool, done: list[Comparison]
    ) -> list[Comparison]:
        """done: what is returned is put there too."""
        new, changes = self._passed((*twins.BEFORE, each), "cpu", training)
        if not changes[-1].result.rewrites:
            return []
        self.verdict.fired[each.name] += 1
        before = fx.GraphModule(gm, changes[-1].before)
        done.append(lambda args, _: self._differ(run(wide(new), args, training), run(twin(before), args, training)))
        return done

    def _skipped(self, gm: fx.GraphModule, stack: str, training: bool) -> list[Comparison]:
        """Compared by check.py with the program's modules."""
        new, changes = self._passed((twins.skip(stack, self.number),), "cpu", training)
        if not changes[-1].result.rewrites:
            return []
        self.verdict.fired["compskip"] += 1
        self.skips.append((stack, changes[-1].result))

        def keep(args: Sequence[Any], wanted: Values) -> str:
            self.results[stack] = run(wide(new), args, training)
            return ""

        return [keep]

    def _lowered(
        self, gm: fx.GraphModule, latest: fx.GraphModule, inputs: Sequence[Any], recipes: Recipes, training: bool
    ) -> list[Comparison]:
        """latest: after the passes on Dynamo's graph; as written, where each ran alone."""
        try:
            new = lowered(latest, inputs, recipes, self.verdict.fired)
        except Exception as error:
            if reason := _refused(lambda: lowered(gm, inputs, None, self.verdict.fired)):
                self.verdict.notes[f"AOTAutograd refuses it: {reason}"] += 1
                return []
            raise error
        alike = self.again or new.draws
        plain = lowered(gm, inputs, None, self.verdict.fired).call if alike else None

        def compare(args: Sequence[Any], wanted: Values) -> str:
            with InFloat64():
                if plain is not None and (reason := _refused(lambda: run(plain, args, training))):
                    self.verdict.notes[f"AOTAutograd's graph does not run: {reason}"] += 1
                    return ""
                wanted = wanted if plain is None else run(plain, args, training)
                try:
                    found, reason = run(new.call, args, training), ""
                except Exception as error:
                    found, reason = wanted, f"crash: {type(error).__name__}: {error}"
            reason = reason or self._differ(found, wanted)
            self.unsure = bool(reason) and plain is None
            return "" if self.unsure else reason

        return [compare]


def _refused(make: Callable[[], Any]) -> str:
    try:
        make()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:60]}"
    return ""
