"""loka.probe: run a model on calibration batches and learn where low precision is safe.

with loka.probe(model) as probe:
    for batch in batches:
        loss(model(batch)).backward()       # or forward only, under no_grad
probe.save("model.profile")

with loka.probe(model, call=model.calculate_loss) as probe:     # what is compiled is another method
    model.calculate_loss(batch).backward()
with loka.probe(model, call=train_step) as probe:               # or a function, called through the probe
    probe.call(batch)
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from loka_compile import compat
from loka_compile.graph.rerun import own_inputs, written_inputs
from loka_compile.probe.observer import Observer, chosen_recipes
from loka_compile.probe.pairs import PAIRS
from loka_compile.probe.profile import Profile
from loka_compile.probe.segments import LabelsOf, Watch
from loka_compile.spec.error_budget import DEFAULT, ErrorBudget
from loka_compile.spec.recipes import Recipe

RECOMPILE_LIMIT = 64
"""Graphs that one frame of a probed model may be compiled into, in the probe alone: every new static shape is one."""

EAGER_RANDOM = {"fallback_random": True}
"""Inductor's setting for dropout and the like to draw what eager draws."""

_probed: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class ProbeError(RuntimeError):
    """A probe that cannot start, or has nothing to tell: what is wrong and what to do."""


def probe(
    model: nn.Module,
    *,
    call: Callable[..., Any] | None = None,
    recipes: Iterable[Recipe | str] | None = None,
    rows: int = 256,
    score_calls: int = 4,
    pairs: int = PAIRS,
    seed: int = 0,
    max_mere: float = DEFAULT.max_mere,
    min_sqnr_db: float = DEFAULT.min_sqnr_db,
    segments: LabelsOf | None = None,
    production: Mapping[str, Mapping[Any, float]] | None = None,
) -> Probe:
    """A context in which every call of `model` is measured, forward and backward.

    call: what is measured instead of `model(...)`: one of its methods, or a method of another object, by whatever code
    calls it in the context; or a function, called as `probe.call(...)`. Compile the same one. recipes: which to score,
    all for None. rows: most rows a call is scored on. score_calls: calls of a site that are scored; later ones still
    add to its statistics. pairs: most drawn pairs of operands a site is scored on. seed: of what is sampled and drawn.
    max_mere, min_sqnr_db: the error budget that Dispatch will be given; no more pairs are drawn where it is surely met
    or surely missed. segments: called with what the model is called with, gives a label for every row of the
    batch, by feature; errors are then also scored by segment. production: feature -> value -> share of production's
    traffic, for the profile to say whether the rows seen can speak for it. Results and gradients are those of the
    model; afterwards it is as before.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"loka.probe takes an nn.Module, got {type(model).__name__}")
    for name, value in (("rows", rows), ("score_calls", score_calls), ("pairs", pairs)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if production and segments is None:
        raise ValueError(f"production has shares of {list(production)}: give segments=, which says the rows' labels")
    budget = ErrorBudget(max_mere, min_sqnr_db)
    watch = Watch(segments, production or {}, rows, seed) if segments is not None else None
    if call is not None and (not callable(call) or isinstance(call, nn.Module)):
        raise TypeError(f"call is a method or a function that runs the model, got {type(call).__name__}")
    return Probe(model, Observer(chosen_recipes(recipes), rows, score_calls, seed, pairs, watch, budget), call)


class Probe:
    """The context manager that `loka.probe` returns; it is entered once."""

    def __init__(self, model: nn.Module, observer: Observer, call: Callable[..., Any] | None = None) -> None:
        self.model = model
        self.call = call if call is not None else model
        self.calls = 0
        self.unmeasured = 0
        self._observer = observer
        self._restore: Callable[[], None] | None = None
        self._profile: Profile | None = None

    def __enter__(self) -> Probe:
        if self._restore is not None or not self._observer.active:
            raise ProbeError("this probe was entered before; make a new one with loka.probe(model)")
        if self.model in _probed:
            raise ProbeError("this model is being probed already; leave that probe first")
        if compat.is_compiled(self.model):
            raise ProbeError("this model is compiled already; probe it before torch.compile or .compile()")
        self._restore = self._measured()
        _probed.add(self.model)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._restore is not None
        self._restore()
        _probed.discard(self.model)
        self._observer.active = False
        if self.unmeasured:
            warnings.warn(
                f"loka.probe: {self.unmeasured} of {self.calls} calls of the model ran without being measured. Dynamo "
                f"compiles a frame at most {RECOMPILE_LIMIT} times; use fewer different batch shapes.",
                stacklevel=2,
            )

    @property
    def profile(self) -> Profile:
        """The profile so far; final once the context is left. Raises ProbeError if there is nothing."""
        if self._profile is not None:
            return self._profile
        if not self._observer.graphs_run:
            called = "none of its calls could be measured" if self.calls else "no batch went through the model"
            raise ProbeError(
                f"nothing was probed: {called}; call model(batch) inside the context, not model.forward. For another "
                "method or a function that runs the model: loka.probe(model, call=model.calculate_loss)"
            )
        profile = self._observer.profile()
        if not profile.sites:
            raise ProbeError(f"no floating-point GEMM ran in {self.calls} calls of the model: nothing to lower")
        if not self._observer.active:
            self._profile = profile
        return profile

    def save(self, path: str | Path) -> None:
        """Write the profile; loka.load_profile reads it."""
        self.profile.save(path)

    def _measured(self) -> Callable[[], None]:
        """Send the calls through the measuring backend; what is returned undoes that."""
        options: dict[str, Any] = {"backend": self._backend, "recompile_limit": RECOMPILE_LIMIT}
        if self.call is self.model:
            return compat.compile_calls(self.model, self._wrap, **options)
        call, owner = self.call, getattr(self.call, "__self__", None)
        self.call = self._wrap(compat.compile_apart(call, **options))
        if owner is None or isinstance(owner, type):
            return lambda: setattr(self, "call", call)
        name = call.__name__
        before = vars(owner).get(name)  # the class's own method stays; the object's goes before it
        vars(owner)[name] = self.call

        def restore() -> None:
            self.call = call
            vars(owner).pop(name)
            vars(owner).update({} if before is None else {name: before})

        return restore

    def _backend(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """The measuring backend: AOTAutograd's graphs, run node by node."""
        observer = self._observer
        compat.name_root(gm)
        return compat.capture(gm, example_inputs, joint=observer.joint, inner=observer.inner, patches=EAGER_RANDOM)

    def _wrap(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """Counts the model's calls, and those that ran none of our graphs."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._observer.watch is not None:
                self._observer.watch.begin(args, kwargs)
            before = self._observer.graphs_run
            out = compiled(*args, **kwargs)
            self.calls += 1
            self.unmeasured += self._observer.graphs_run == before
            return out

        return call


def profile_graph(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    recipes: Iterable[Recipe | str] | None = None,
    rows: int = 256,
    seed: int = 0,
    budget: ErrorBudget = DEFAULT,
) -> Profile:
    """A profile from one forward run of a Dynamo graph on the real inputs a backend was called with.

    Inputs, random state and grad mode stay as they are. A graph without GEMMs has a profile without sites.
    budget: what Dispatch will be given.
    """
    if any(map(compat.is_fake, example_inputs)):
        raise ProbeError("profile_graph needs the real inputs of a backend call, got a fake tensor")
    observer = Observer(chosen_recipes(recipes), rows, 1, seed, PAIRS // 4, budget=budget)
    twin = compat.copy_dynamo_graph(gm)  # the capture rewrites what it is given
    with torch.random.fork_rng(compat.cuda_devices(example_inputs)), torch.no_grad():
        run = compat.capture(twin, example_inputs, joint=observer.joint, inner=observer.inner)
        with compat.outside_compilation():
            run(*own_inputs([*map(compat.concrete, example_inputs)], written_inputs(gm.graph)))
    return observer.profile()
