"""Measured times: kernels run on this machine, at the site's sizes, and remembered on disk.

A candidate's time is its GEMM kernel on ready operands plus its casts. A cast costs per element what a compiled one
costs at a large size, in rows of about that length: by itself, or where Inductor fuses it with what makes the tensor,
what it adds to that. So does bringing the product to the wanted dtype, which Inductor fuses with what reads it.

Kernels write into memory that is there, as in a graph that Inductor has planned: new memory comes page by page, and
that took longer than a thin product (262144 x 16 x 16 in int8: 616 us, 385 without).

`measured` is the clock: many GEMMs at once, each kernel and each loop timed once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loka_compile import compat
from loka_compile.dispatch import kept_times, loops, progress
from loka_compile.dispatch.candidates import Fit
from loka_compile.dispatch.cost import Asked, Cost, Needed, Times, casts
from loka_compile.dispatch.loops import Extra, Loop
from loka_compile.dispatch.operands import operands, random, unit_scales
from loka_compile.dispatch.steady import HERE, HOPELESS, ON_A_BUSY_MACHINE, best_us, is_noisy
from loka_compile.kernels.gemm import float_mm
from loka_compile.kernels.providers import PROVIDERS
from loka_compile.spec.decision import Candidate
from loka_compile.spec.recipes import Recipe
from loka_compile.spec.site import Site
from loka_compile.spec.sizes import Sizes

SMALL, FEW = 4_000_000, 8
"""Float32 products of fewer operations, or with fewer rows, columns or terms, are PyTorch's."""
FASTER, CALL_US = 1.1, 15.0
"""What oneDNN's has to win by, and what calling an operator of ours takes beyond."""
LOST, LAUNCH_US, THIN = 30.0, 10.0, 64
"""A kernel that takes so many times as long as the GEMM as it is, and not for its launch alone, is not timed at larger
sizes of its kind: those with a dimension below THIN, or those without."""


def keep_us(site: Site, sizes: Sizes) -> float:
    """Microseconds of the GEMM as the model has it. Of a batch also as Inductor compiles it, which writes products with
    a dimension of 1 out as pointwise code: seven of a MMoE's 35 ms hung on that."""
    written_out = loops.thin(site, sizes)
    alone = _alone_us(site, sizes)
    return alone if written_out is None else min(alone, _extra_us(written_out))


def _alone_us(site: Site, sizes: Sizes) -> float:
    if site.dtype == torch.float32 and float_mm_pays(sizes):
        return _float_mm_us(sizes)
    return _matmul_us(site.dtype, sizes)


def _matmul_us(dtype: torch.dtype, sizes: Sizes) -> float:
    a, b, out = operands(sizes, dtype, dtype)
    measure = lambda: best_us(lambda: torch.matmul(a(), b(), out=out(dtype)))  # noqa: E731
    return kept_times.remembered(_alone_key(dtype, sizes), measure)


def _alone_key(dtype: torch.dtype, sizes: Sizes) -> str:
    return kept_times.key("keep", dtype, sizes)


def float_mm_pays(sizes: Sizes) -> bool:
    """Whether a float32 product is faster by oneDNN than by PyTorch, by more than an operator of ours costs."""
    if sizes.batch != 1 or min(sizes.M, sizes.N, sizes.K) < FEW or sizes.flops < SMALL or not float_mm.runs_here():
        return False
    return _float_mm_us(sizes) * FASTER + CALL_US < _matmul_us(torch.float32, sizes)


def _float_mm_us(sizes: Sizes) -> float:
    a, b, _ = operands(sizes, torch.float32, torch.float32)
    call = lambda: float_mm.product(float_mm.FloatMm(a(), b()))  # noqa: E731
    return kept_times.remembered(kept_times.key("float_mm", sizes), lambda: best_us(call))


def call_us(name: str, make: Callable[[], Callable[[], Any]]) -> float:
    """Microseconds of what `make` returns, which the name tells."""
    return kept_times.remembered(name, lambda: best_us(make()))


def lost(site: Site, sizes: Sizes, recipe: Recipe, provider: str) -> str:
    """Why a kernel need not be timed at these sizes; empty where it has to be, or was."""
    flops = kept_times.recall(_lost_key(site, sizes, recipe, provider))
    if flops is None or flops >= sizes.flops or _kernel_key(site, sizes, recipe, provider) in kept_times.times():
        return ""
    return f"it took more than {LOST:g}x as long as the GEMM as it is at smaller sizes, measured here: not timed again"


# ---------------------------------------------------------------- many GEMMs


@dataclass(frozen=True)
class _Around:
    """The loops around a kernel: what finishes its product, and each cast, fused and as a loop of its own where both
    are wanted."""

    rescale: Extra | None
    casts: Sequence[tuple[Needed, Sequence[Extra]]]

    @property
    def extras(self) -> list[Extra]:
        rescale = [] if self.rescale is None else [self.rescale]
        return [*rescale, *(extra for _, extras in self.casts for extra in extras)]


@dataclass(frozen=True)
class _Kernels:
    """The kernels of one GEMM, timed. around: of those that have a chance against the GEMM as it is."""

    alone_us: float
    thin: Extra | None
    us: Mapping[Candidate, float]
    lost: Mapping[Candidate, str]
    around: Mapping[Candidate, _Around]

    @property
    def loops(self) -> list[Loop]:
        thin = [] if self.thin is None else [self.thin]
        extras = [*thin, *(extra for around in self.around.values() for extra in around.extras)]
        return [loop for extra in extras for loop in extra.loops]


def measured(asked: Sequence[Asked], margin: float) -> list[Times]:
    """The clock of this machine: every GEMM as it is, and its candidates, which have to be `margin` times as fast.

    Kernels first, of small GEMMs before large ones: what they tell of a kernel need not be asked of large ones. Then
    the loops around kernels that have a chance, all compiled at once, which takes a tenth of the time.
    """
    if (os.cpu_count() or 1) < 2 * torch.get_num_threads():  # kernels are timed with nothing beside them
        compat.compiler_started()
    timed: dict[int, _Kernels] = {}
    for index in sorted(range(len(asked)), key=lambda index: asked[index].sizes.flops):
        progress.say(f"timing kernels for {asked[index].site.key}")
        timed[index] = _kernels(asked[index], margin)
    _measure({loop.name: loop for kernels in timed.values() for loop in kernels.loops}.values())
    return [_times(each, timed[index], margin) for index, each in enumerate(asked)]


def _kernels(asked: Asked, margin: float) -> _Kernels:
    site, sizes = asked.site, asked.sizes
    alone_us = _alone_us(site, sizes)
    us: dict[Candidate, float] = {}
    out: dict[Candidate, str] = {}
    around: dict[Candidate, _Around] = {}
    for fit in asked.fits:
        if why := lost(site, sizes, fit.recipe, fit.provider):
            out[fit.candidate] = why
            continue
        us[fit.candidate] = _kernel_us(site, sizes, fit.recipe, fit.provider, alone_us / margin)
        if us[fit.candidate] <= HOPELESS * (alone_us / margin):
            around[fit.candidate] = _around(fit, sizes)
    return _Kernels(alone_us, loops.thin(site, sizes), us, out, around)


def _around(fit: Fit, sizes: Sizes) -> _Around:
    site, recipe = fit.site, fit.recipe
    needed = casts(site, sizes, recipe)
    kinds = [(each.fused, False) if each.made_by else (each.fused,) for each in needed]
    extras = [[loops.cast(recipe, site.dtype, fused, sizes.K) for fused in kind] for kind in kinds]
    rescale = loops.rescale(PROVIDERS[fit.provider].behind(recipe, site.dtype), site.dtype)
    return _Around(rescale, list(zip(needed, extras, strict=True)))


def _times(asked: Asked, kernels: _Kernels, margin: float) -> Times:
    """What was timed, put together. Of a kernel without a chance only a lower bound, without its casts."""
    site, sizes, keep_us = asked.site, asked.sizes, kernels.alone_us
    if kernels.thin is not None:
        keep_us = min(keep_us, _extra_us(kernels.thin))
    costs = {}
    for fit in asked.fits:
        us, around = kernels.us.get(fit.candidate), kernels.around.get(fit.candidate)
        if us is None:
            continue
        if kernels.thin is not None:  # the GEMM as it is may be faster than its kernel alone
            _note_lost(site, sizes, fit.recipe, fit.provider, us, keep_us / margin)
        if around is None or us > HOPELESS * (keep_us / margin):
            costs[fit.candidate] = Cost(us)
            continue
        rescale_us = 0.0 if around.rescale is None else _extra_us(around.rescale)
        found = (each.taking(*(each.elements * _extra_us(extra) for extra in extras)) for each, extras in around.casts)
        costs[fit.candidate] = Cost(us + rescale_us * sizes.out, tuple(found))
    return Times(keep_us, costs, ON_A_BUSY_MACHINE if _was_busy(asked, kernels) else HERE, kernels.lost)


def _was_busy(asked: Asked, kernels: _Kernels) -> bool:
    """Whether any of the times that a GEMM's costs are made of was measured while the machine was busy."""
    site, sizes = asked.site, asked.sizes
    timed = [fit for fit in asked.fits if fit.candidate in kernels.us]
    names = [_kernel_key(site, sizes, fit.recipe, fit.provider) for fit in timed]
    names += [_alone_key(site.dtype, sizes), *map(_loop_key, kernels.loops)]
    return not kept_times.noisy().isdisjoint(names)


# ---------------------------------------------------------------- one kernel


def _kernel_us(site: Site, sizes: Sizes, recipe: Recipe, provider: str, beat_us: float) -> float:
    lhs, rhs = _formats(site, recipe)

    def measure() -> float:
        a, b, out = operands(sizes, lhs, rhs)
        return best_us(PROVIDERS[provider].timed(a, b, unit_scales(recipe, sizes), out, site.dtype), beat_us)

    us = kept_times.remembered(_kernel_key(site, sizes, recipe, provider), measure)
    _note_lost(site, sizes, recipe, provider, us, beat_us)
    return us


def _note_lost(site: Site, sizes: Sizes, recipe: Recipe, provider: str, us: float, beat_us: float) -> None:
    """Remembers a kernel that took so long here that larger sizes of its kind need not be timed."""
    if us > LOST * max(beat_us, LAUNCH_US):
        key = _lost_key(site, sizes, recipe, provider)
        kept_times.remember(key, min(sizes.flops, kept_times.recall(key) or math.inf))


def _formats(site: Site, recipe: Recipe) -> tuple[torch.dtype, torch.dtype]:
    (lhs, _), (rhs, _) = (recipe.operand(side, site.gradient == side) for side in ("lhs", "rhs"))
    return lhs, rhs


def _kernel_key(site: Site, sizes: Sizes, recipe: Recipe, provider: str) -> str:
    return kept_times.key(provider, *_formats(site, recipe), recipe.scaling, site.dtype, sizes)


def _lost_key(site: Site, sizes: Sizes, recipe: Recipe, provider: str) -> str:
    """Thin products, and batches, may have a kernel of their own."""
    shape = "thin" if min(sizes.M, sizes.N, sizes.K) < THIN else "wide"
    kind = shape if sizes.batch == 1 else f"{shape} batch"
    return kept_times.key("lost", provider, *_formats(site, recipe), recipe.scaling, site.dtype, kind)


# ---------------------------------------------------------------- loops that Inductor writes

TOGETHER = 32
"""Loops of one compilation: g++ takes longer than in proportion to a file."""


def _extra_us(extra: Extra) -> float:
    """What a loop takes per element, beyond another one where there is one."""
    _measure(extra.loops)
    times = [kept_times.times()[_loop_key(loop)] for loop in extra.loops]
    return times[0] if len(times) == 1 else max(0.0, times[0] - times[1])


def _loop_key(loop: Loop) -> str:
    return kept_times.key("loop", loop.name)


def _measure(wanted: Iterable[Loop]) -> None:
    """Times what is not known yet."""
    unknown = [loop for loop in wanted if _loop_key(loop) not in kept_times.times()]
    for start in range(0, len(unknown), TOGETHER):
        several = unknown[start : start + TOGETHER]
        progress.say(f"compiling {len(several)} casts and products, to time them")
        with kept_times.measuring():
            empty = lambda shape, dtype: torch.empty(shape, dtype=dtype, device="cpu")  # noqa: E731
            inputs = [loop.inputs(empty) for loop in several]
            ready = compat.compile_together([loop.function for loop in several], inputs)
            for index, loop in enumerate(several):
                us = best_us(ready(index, loop.inputs(random)))
                kept_times.note(_loop_key(loop), us / loop.values, is_noisy(us))
        kept_times.save()
