"""Measured times: kernels run on this machine, at the site's sizes, and remembered on disk.

A candidate's time is its GEMM kernel on ready operands plus its casts. A cast costs per element what a compiled one
costs at a large size, in rows of about that length: by itself, or where Inductor fuses it with what makes the tensor,
what it adds to that. So does bringing the product to the wanted dtype, which Inductor fuses with what reads it.

Kernels write into memory that is there, as in a graph that Inductor has planned: new memory comes page by page, and
that took longer than a thin product (262144 x 16 x 16 in int8: 616 us, 385 without).

What is asked for one by one is measured one by one; `measure_ahead` compiles all loops of many sites at once, which
takes a tenth of the time.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from loka_compile import compat
from loka_compile.dispatch import kept_times, loops, progress
from loka_compile.dispatch.cost import Cost, casts
from loka_compile.dispatch.loops import Extra, Loop
from loka_compile.kernels.gemm import float_mm
from loka_compile.kernels.providers import PROVIDERS
from loka_compile.kernels.quantize import quantize as quantization
from loka_compile.spec.decision import Candidate
from loka_compile.spec.recipes import RECIPES, Recipe
from loka_compile.spec.site import Site
from loka_compile.spec.sizes import Sizes

REPEATS = 7
MIN_TOTAL_US, MAX_TOTAL_US = 10_000, 100_000
"""A kernel is run REPEATS times, a short one for at least so long, a long one until that."""
HOPELESS = 1.15
"""A kernel that takes so many times what is to be beaten, without its casts, has no chance: noise is less."""
FAR = 20.0
"""One that takes so many times as long in its second run is not run again."""
LONG_US, GENERATED_US = 1_000, 20_000
"""Two runs of so long are no interruptions; a first run generates code, which takes less than that."""
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
    a, b, out = _operands(sizes, dtype, dtype)
    measure = lambda: _best_us(lambda: torch.matmul(a(), b(), out=out(dtype)))  # noqa: E731
    return kept_times.remembered(kept_times.key("keep", dtype, sizes), measure)


def float_mm_pays(sizes: Sizes) -> bool:
    """Whether a float32 product is faster by oneDNN than by PyTorch, by more than an operator of ours costs."""
    if sizes.batch != 1 or min(sizes.M, sizes.N, sizes.K) < FEW or sizes.flops < SMALL or not float_mm.runs_here():
        return False
    return _float_mm_us(sizes) * FASTER + CALL_US < _matmul_us(torch.float32, sizes)


def _float_mm_us(sizes: Sizes) -> float:
    a, b, _ = _operands(sizes, torch.float32, torch.float32)
    call = lambda: float_mm.product(float_mm.FloatMm(a(), b()))  # noqa: E731
    return kept_times.remembered(kept_times.key("float_mm", sizes), lambda: _best_us(call))


def call_us(name: str, make: Callable[[], Callable[[], Any]]) -> float:
    """Microseconds of what `make` returns, which the name tells."""
    return kept_times.remembered(name, lambda: _best_us(make()))


def cost(site: Site, sizes: Sizes, recipe: Recipe, provider: str, beat_us: float = float("inf")) -> Cost:
    """The GEMM in a recipe. Only a lower bound, without casts, once the kernel alone is hopeless against beat_us."""
    kernel = _kernel_us(site, sizes, recipe, provider, beat_us)
    if kernel > HOPELESS * beat_us:
        return Cost(kernel)
    cast_us = lambda elements, fused: elements * _extra_us(loops.cast(recipe, site.dtype, fused, sizes.K))  # noqa: E731
    rescale = loops.rescale(PROVIDERS[provider].behind(recipe, site.dtype), site.dtype)
    rescale_us = 0.0 if rescale is None else _extra_us(rescale)
    return Cost(kernel + rescale_us * sizes.out, casts(site, sizes, recipe, cast_us))


def measure_ahead(asked: Iterable[tuple[Site, Sizes, Sequence[Candidate]]], margin: float) -> None:
    """Measure what `keep_us` and `cost` will be asked for: by site its sizes and candidates, which have to be `margin`
    times as fast as the GEMM as it is. Small ones first: what they tell of a kernel need not be asked of large ones."""
    if (os.cpu_count() or 1) < 2 * torch.get_num_threads():  # kernels are timed with nothing beside them
        compat.compiler_started()
    wanted: dict[str, Loop] = {}
    for site, sizes, candidates in sorted(asked, key=lambda each: each[1].flops):
        progress.say(f"timing kernels for {site.key}")
        extras = [loops.thin(site, sizes)]
        beat_us = _alone_us(site, sizes) / margin
        for candidate in candidates:
            recipe = RECIPES[candidate.recipe]
            if lost(site, sizes, recipe, candidate.provider):
                continue
            if _kernel_us(site, sizes, recipe, candidate.provider, beat_us) <= HOPELESS * beat_us:
                behind = PROVIDERS[candidate.provider].behind(recipe, site.dtype)
                extras += [loops.rescale(behind, site.dtype), *_cast_loops(site, sizes, recipe)]
        wanted |= {loop.name: loop for extra in extras if extra is not None for loop in extra.loops}
    _measure(wanted.values())


def lost(site: Site, sizes: Sizes, recipe: Recipe, provider: str) -> str:
    """Why a kernel need not be timed at these sizes; empty where it has to be, or was."""
    flops = kept_times.recall(_lost_key(site, sizes, recipe, provider))
    if flops is None or flops >= sizes.flops or _kernel_key(site, sizes, recipe, provider) in kept_times.times():
        return ""
    return f"it took more than {LOST:g}x as long as the GEMM as it is at smaller sizes, measured here: not timed again"


def _cast_loops(site: Site, sizes: Sizes, recipe: Recipe) -> list[Extra]:
    found: list[Extra] = []

    def note(elements: int, fused: bool) -> float:
        found.append(loops.cast(recipe, site.dtype, fused, sizes.K))
        return 0.0

    casts(site, sizes, recipe, note)
    return found


def _kernel_us(site: Site, sizes: Sizes, recipe: Recipe, provider: str, beat_us: float) -> float:
    lhs, rhs = _formats(site, recipe)

    def measure() -> float:
        a, b, out = _operands(sizes, lhs, rhs)
        return _best_us(PROVIDERS[provider].timed(a, b, _unit_scales(recipe, sizes), out, site.dtype), beat_us)

    us = kept_times.remembered(_kernel_key(site, sizes, recipe, provider), measure)
    if us > LOST * max(beat_us, LAUNCH_US):
        key = _lost_key(site, sizes, recipe, provider)
        kept_times.remember(key, min(sizes.flops, kept_times.recall(key) or math.inf))
    return us


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


def _operands(
    sizes: Sizes, lhs: torch.dtype, rhs: torch.dtype
) -> tuple[Callable[[], Any], Callable[[], Any], Callable[[torch.dtype], Any]]:
    """Random operands and memory for the result, made when first asked for; the right operand laid out as a linear's
    transposed weight."""
    batch = () if sizes.batch == 1 else (sizes.batch,)

    @functools.cache
    def a() -> Any:
        return _random((*batch, sizes.M, sizes.K), lhs)

    @functools.cache
    def b() -> Any:
        return _random((*batch, sizes.N, sizes.K), rhs).transpose(-1, -2)

    @functools.cache
    def out(dtype: torch.dtype) -> Any:
        return torch.empty((*batch, sizes.M, sizes.N), dtype=dtype)

    return a, b, out


def _random(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if dtype in (torch.int8, torch.int32):
        return torch.randint(-127, 128, shape, dtype=dtype)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype)
    return torch.rand(shape).sub_(0.5).to(dtype)


def _unit_scales(recipe: Recipe, sizes: Sizes) -> tuple[Any, Any]:
    if recipe.scaling == "none":
        return None, None
    if recipe.scaling == "tensor":
        return torch.ones(1), torch.ones(1)
    batch = () if sizes.batch == 1 else (sizes.batch,)
    blocks = -(-sizes.K // quantization.BLOCK) if recipe.scaling == "block" else 1
    columns = -(-sizes.N // quantization.BLOCK) if recipe.scaling == "block" else sizes.N
    return torch.ones(*batch, sizes.M, blocks), torch.ones(*batch, blocks, columns)


# ---------------------------------------------------------------- loops that Inductor writes

TOGETHER = 32
"""Loops of one compilation: g++ takes longer than in proportion to a file."""


def _extra_us(extra: Extra) -> float:
    """What a loop takes per element, beyond another one where there is one."""
    _measure(extra.loops)
    times = [kept_times.times()[kept_times.key("loop", loop.name)] for loop in extra.loops]
    return times[0] if len(times) == 1 else max(0.0, times[0] - times[1])


def _measure(wanted: Iterable[Loop]) -> None:
    """Times what is not known yet."""
    unknown = [loop for loop in wanted if kept_times.key("loop", loop.name) not in kept_times.times()]
    for start in range(0, len(unknown), TOGETHER):
        several = unknown[start : start + TOGETHER]
        progress.say(f"compiling {len(several)} casts and products, to time them")
        with kept_times.measuring():
            empty = lambda shape, dtype: torch.empty(shape, dtype=dtype)  # noqa: E731
            inputs = [loop.inputs(empty) for loop in several]
            ready = compat.compile_together([loop.function for loop in several], inputs)
            for index, loop in enumerate(several):
                us = _best_us(ready(index, loop.inputs(_random))) / loop.values
                kept_times.times()[kept_times.key("loop", loop.name)] = us
        kept_times.save()


def _best_us(run: Callable[[], Any], beat_us: float = float("inf")) -> float:
    """The best of a few runs (what else runs on the machine only ever adds); fewer where these are far behind.

    The first does not count otherwise: oneDNN generates a kernel's code in it, milliseconds for a GEMM of microseconds.
    Nor is a short kernel given up before it ran REPEATS times, as a run that was interrupted takes milliseconds.
    """
    first = _time_us(run)
    if first > max(HOPELESS**3 * beat_us, beat_us + GENERATED_US):
        return first
    times: list[float] = []
    while (len(times) < REPEATS and sum(times) < MAX_TOTAL_US) or (
        sum(times) < MIN_TOTAL_US and len(times) < 10 * REPEATS
    ):
        times.append(_time_us(run))
        behind, long = (HOPELESS**2, LONG_US) if len(times) > 1 else (FAR, GENERATED_US)
        if min(times) > behind * beat_us and (len(times) >= REPEATS or min(times) > long):
            break
    return min(times)


def _time_us(run: Callable[[], Any]) -> float:
    """By the clock, or what the process' threads took where that is less: then the run was interrupted. One that waits
    for its turn on a busy machine takes milliseconds, which say nothing of the kernel."""
    worked, start = time.process_time(), time.perf_counter()
    run()
    passed = time.perf_counter() - start
    return min(passed, time.process_time() - worked) * 1e6
