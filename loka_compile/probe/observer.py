"""Watching a graph's GEMMs run, and making a profile of what was seen."""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx

from loka_compile.graph.equal import equal
from loka_compile.graph.sites import GEMMS, SITE_META, annotate, operands
from loka_compile.probe import segments
from loka_compile.probe.distribution import generator_for, sample_dim
from loka_compile.probe.models import kind_of
from loka_compile.probe.pairs import PAIRS, estimate
from loka_compile.probe.profile import Profile
from loka_compile.probe.score import ErrorScore, emulate, exact, product, runs, score, subsample
from loka_compile.probe.site_profile import SiteProfile
from loka_compile.probe.statistics import OperandStatistics
from loka_compile.spec.error_budget import DEFAULT, ErrorBudget
from loka_compile.spec.recipes import RECIPES, Recipe
from loka_compile.spec.site import Site

COLUMNS = 256
"""Columns of the right operand that a call is scored on."""
CONTRACTION = 2**14
"""Terms of a sum over the batch that a call is scored on."""


def chosen_recipes(recipes: Iterable[Recipe | str] | None) -> tuple[Recipe, ...]:
    """Recipes by name; all of them for None. Raises ValueError on an unknown name."""
    if isinstance(recipes, str):
        raise ValueError(f"recipes is a list of names, got the string {recipes!r}")
    found = []
    for recipe in RECIPES.values() if recipes is None else recipes:
        if not isinstance(recipe, Recipe) and recipe not in RECIPES:
            near = difflib.get_close_matches(str(recipe), RECIPES, 1, 0)
            raise ValueError(f"unknown recipe {recipe!r}, did you mean {near[0]!r}? Known: {', '.join(RECIPES)}")
        found.append(recipe if isinstance(recipe, Recipe) else RECIPES[recipe])
    return tuple(found)


@dataclass
class _Record:
    """The observations of one site so far."""

    site: Site
    lhs: OperandStatistics
    rhs: OperandStatistics
    picks: torch.Generator
    calls: int = 0
    scored: int = 0
    scores: dict[str, ErrorScore] = field(default_factory=dict)
    segments: dict[str, segments.SegmentScore] = field(default_factory=dict)
    observed: tuple[int, int, int, int] = (1, 0, 0, 0)


class Observer:
    """Collects from every graph of a model.

    rows: most rows a call is scored on. score_calls: calls of a site that are scored; later ones only add to its
    statistics. pairs: most drawn pairs a site is scored on. watch: who is in the batches, to score by segment.
    budget: drawing pairs stops where it is surely met or surely missed.
    `active`: whether running graphs are watched.
    """

    def __init__(
        self,
        recipes: tuple[Recipe, ...],
        rows: int,
        score_calls: int,
        seed: int,
        pairs: int = PAIRS,
        watch: segments.Watch | None = None,
        budget: ErrorBudget = DEFAULT,
    ) -> None:
        self.recipes, self.rows, self.score_calls, self.seed, self.pairs = recipes, rows, score_calls, seed, pairs
        self.watch, self.budget = watch, budget
        self.records: dict[str, _Record] = {}
        self.equal: dict[str, list[str]] = {}
        """By key: the sites of one graph that compute the same. One of them runs, and speaks for all."""
        self.active = True
        self.graphs_run = 0

    def joint(self, graph: fx.Graph) -> None:
        """Names the GEMMs of an inference or joint graph: the `joint` of compat.capture."""
        gemms = {gemm.node: gemm.site for gemm in annotate(graph)}
        for site in gemms.values():
            self._register(site)
        for group in equal(gemms):
            keys = [self._key(gemms[node]) for node in group]
            self.equal |= dict.fromkeys(keys, keys)

    def inner(self, gm: fx.GraphModule, is_backward: bool) -> Callable[..., Any]:
        """Runs a graph node by node, watching: the `inner` of compat.capture."""

        def run(*args: Any) -> Any:
            return run.boxed_run(list(args))  # type: ignore[attr-defined]

        def boxed_run(args: list[Any]) -> Any:
            self.graphs_run += 1
            return (_Watching(gm, self) if self.active else fx.Interpreter(gm)).boxed_run(args)

        run.boxed_run = boxed_run  # type: ignore[attr-defined]
        return run

    def observe(self, site: Site, lhs: Tensor, rhs: Tensor) -> None:
        """One call of a site with its real operands, which are only read."""
        if not (lhs.is_floating_point() and rhs.is_floating_point()):
            return  # an integer product has nothing to lose
        record = self.records[self._key(site)]
        record.calls += 1
        batch = lhs.shape[0] if lhs.dim() == 3 else 1
        sizes = (batch, lhs.shape[-2], rhs.shape[-1], lhs.shape[-1])
        record.observed = max(record.observed, sizes, key=lambda s: s[0] * s[1] * s[2] * s[3])
        with exact():
            amax = record.lhs.add(lhs), record.rhs.add(rhs)
            if record.scored < self.score_calls and lhs.numel() and rhs.numel():
                record.scored += 1
                self._score_segments(record, lhs, rhs, amax)
                if site.role == "grad_weight" and lhs.shape[-1] > CONTRACTION:  # a sum over the batch: some will do
                    some = runs(lhs.shape[-1], CONTRACTION, record.picks).to(lhs.device)
                    lhs, rhs = lhs.index_select(-1, some), rhs.index_select(-2, some)
                a, b = subsample(lhs, rhs, self.rows, COLUMNS, record.picks)
                _score_all(self.recipes, site, a, b, amax, record.scores)

    def _score_segments(self, record: _Record, lhs: Tensor, rhs: Tensor, amax: tuple[float, float]) -> None:
        if self.watch is None:
            return
        found = self.watch.scores(record.site, lhs, rhs, self.recipes, amax, record.picks)
        for name, each in found.items():
            record.segments[name] = record.segments.get(name, segments.SegmentScore()).joined(each)

    def profile(self) -> Profile:
        versions = {"loka": importlib.metadata.version("loka-compile"), "torch": str(torch.__version__)}
        sites = {key: self._site_profile(key, record) for key, record in self.records.items() if record.calls}
        for key, record in self.records.items():
            ran = [sites[other] for other in self.equal.get(key, ()) if other in sites]
            if ran and not record.calls:
                sites[key] = replace(ran[0], site=record.site)
        return Profile(sites, versions, self.seed, source=self.watch.source() if self.watch else None)

    def _site_profile(self, key: str, record: _Record) -> SiteProfile:
        lhs, rhs = record.lhs.result(), record.rhs.result()
        generator = generator_for(self.seed, key, "draw")
        with exact():
            drawn = estimate(record.site, lhs, rhs, self.recipes, record.observed, generator, self.pairs, self.budget)
        scores, by_segment = dict(record.scores), dict(sorted(record.segments.items()))
        return SiteProfile(record.site, record.calls, lhs, rhs, scores, drawn, record.observed, by_segment)

    def _key(self, site: Site) -> str:
        """The site's key; `key@source` for the second site of that key (graphs on both sides of a graph break)."""
        taken = self.records.get(site.key)
        return site.key if taken is None or taken.site.source == site.source else f"{site.key}@{site.source}"

    def _register(self, site: Site) -> None:
        key = self._key(site)
        if key in self.records:
            self.records[key].site = site  # of a later graph: sizes may be symbolic by now
            return
        lhs, rhs = self._statistics(site, key, -1, "lhs"), self._statistics(site, key, -2, "rhs")
        self.records[key] = _Record(site, lhs, rhs, generator_for(self.seed, key, "picks"))

    def _statistics(self, site: Site, key: str, contraction: int, side: Literal["lhs", "rhs"]) -> OperandStatistics:
        generator = generator_for(self.seed, key, side)
        return OperandStatistics(contraction, sample_dim(site, side), generator, kind_of(site, side))


class _Watching(fx.Interpreter):
    """Runs a graph and shows the observer every named GEMM's operands."""

    def __init__(self, gm: fx.GraphModule, observer: Observer) -> None:
        super().__init__(gm)
        self.observer = observer

    def run_node(self, node: fx.Node) -> Any:
        if SITE_META in node.meta and node.target in GEMMS:
            lhs, rhs, *_ = operands(node)
            self.observer.observe(node.meta[SITE_META], self.env[lhs], self.env[rhs])
        return super().run_node(node)


def _score_all(
    recipes: tuple[Recipe, ...], site: Site, lhs: Tensor, rhs: Tensor, amax: Any, scores: dict[str, ErrorScore]
) -> None:
    """Score every recipe on these operands; `scores` keeps the worst."""
    reference = product(lhs, rhs)
    for recipe in recipes:
        found = score(emulate(recipe, lhs, rhs, site.gradient, amax), reference)
        scores[recipe.name] = scores.get(recipe.name, found).worst(found)
