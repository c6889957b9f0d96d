"""Measured times: kernels run on this machine, at the site's sizes, and remembered on disk.

A candidate's time is its GEMM kernel on ready operands plus its casts. A cast costs per element what a compiled one
costs at a large size, in rows of about that length: by itself, or where Inductor fuses it with what makes the tensor,
what it adds to that. So does bringing the product to the wanted dtype, which Inductor fuses with what reads it.

Kernels write into memory that is there, as in a graph that Inductor has planned: new memory comes page by page, and
that took longer than a thin product (262144 x 16 x 16 in int8: 616 us, 385 without).
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from loka_compile import compat
from loka_compile.dispatch.cost import Cost, casts
from loka_compile.dispatch.sizes import Sizes
from loka_compile.graph.site import Site
from loka_compile.kernels import int_mm
from loka_compile.kernels import quantize as quantization
from loka_compile.kernels.providers import PROVIDERS
from loka_compile.kernels.providers.base import Behind
from loka_compile.processor import processor
from loka_compile.recipes import Recipe

REPEATS = 7
MIN_TOTAL_US, MAX_TOTAL_US = 50_000, 300_000
"""A kernel is run REPEATS times, a short one for at least so long, a long one until that."""
HOPELESS = 2.0
"""A kernel this many times slower than the one to beat at its first run is not run again."""
CAST_VALUES = 2**22
CAST_LENGTHS = (16, 64, 1024)
"""A cast is measured on so many values, in rows of one of these lengths: the scales of short rows cost more."""


def keep_us(site: Site, sizes: Sizes) -> float:
    """Microseconds of the GEMM as the model has it. Of a batch also as Inductor compiles it, which writes products with
    a dimension of 1 out as pointwise code: seven of a MMoE's 35 ms hung on that."""
    a, b, out = _operands(sizes, site.dtype, site.dtype)

    def measure() -> float:
        alone = _best_us(lambda: torch.matmul(a(), b(), out=out(site.dtype)))
        if sizes.batch == 1 or min(sizes.M, sizes.N, sizes.K) > 1:
            return alone
        compiled = compat.compile_function(lambda x, y: x @ y, (a(), b()))
        return min(alone, _best_us(lambda: compiled(a(), b())))

    return _remembered(_key("keep", site.dtype, sizes), measure)


def cost(site: Site, sizes: Sizes, recipe: Recipe, provider: str, beat_us: float = float("inf")) -> Cost:
    """The GEMM in a recipe. Only a lower bound, without casts, once the kernel alone is hopeless against beat_us."""
    lhs, _ = recipe.operand("lhs", site.gradient == "lhs")
    rhs, _ = recipe.operand("rhs", site.gradient == "rhs")

    def measure() -> float:
        a, b, out = _operands(sizes, lhs, rhs)
        scales = _unit_scales(recipe, sizes)
        return _best_us(PROVIDERS[provider].timed(a, b, scales, out, site.dtype), HOPELESS * beat_us)

    kernel = _remembered(_key(provider, lhs, rhs, recipe.scaling, site.dtype, sizes), measure)
    if kernel > HOPELESS * beat_us:
        return Cost(kernel)

    def cast_us(elements: int, fused: bool) -> float:
        length = cast_length(recipe, sizes.K)
        key = _key("cast", recipe.name, site.dtype, "fused" if fused else "alone", length)
        return elements * _remembered(key, lambda: _cast_us(recipe, site.dtype, fused, length))

    key = _key("rescale", provider, recipe.name, site.dtype)
    rescale = _remembered(key, lambda: _behind_us(PROVIDERS[provider].behind(recipe, site.dtype), site.dtype))
    return Cost(kernel + rescale * sizes.out, casts(site, sizes, recipe, cast_us))


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
    if dtype == torch.int8:
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


def cast_length(recipe: Recipe, length: int) -> int:
    """Of the lengths of rows that casts are measured with, the nearest in octaves; it only matters for scales a row."""
    if recipe.scaling != "row":
        return CAST_LENGTHS[-1]
    return min(CAST_LENGTHS, key=lambda known: abs(math.log2(known / length)))


def _cast_us(recipe: Recipe, dtype: torch.dtype, fused: bool, length: int) -> float:
    """Microseconds per element of casting an operand; fused, what it adds to the pointwise operator that makes it."""
    made, scaling = recipe.operand("lhs", False)

    def cast(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x.to(made),) if scaling == "none" else quantization.reference(x, made, scaling, -1)

    x = torch.randn(CAST_VALUES // length, length, dtype=dtype)
    if not fused:
        return _compiled_us(cast, x)
    both = _compiled_us(lambda x: (x.relu(), *cast(x.relu())), x)
    return max(0.0, both - _compiled_us(lambda x: x.relu(), x))


def _behind_us(behind: Behind | None, dtype: torch.dtype) -> float:
    """Microseconds per element that finishing the product adds to a pointwise operator that reads it."""
    if behind is None:
        return 0.0
    shape = CAST_VALUES // 1024, 1024
    (step, least), (scale, sums) = torch.rand(2, shape[0], 1), torch.rand(2, 1, shape[1])
    made = (torch.rand(shape) * 9999).to(behind.made)
    both = _compiled_us(lambda *made: behind.finish(*made).relu(), made, step, least, scale, sums)
    return max(0.0, both - _compiled_us(lambda x: x.relu(), torch.randn(shape).to(dtype)))


def _compiled_us(function: Callable[..., Any], *inputs: torch.Tensor) -> float:
    """Microseconds per element of the first input, compiled by Inductor, into memory that is there."""

    def values(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = function(*args)
        return made if isinstance(made, tuple) else (made,)

    outs = [torch.empty_like(each) for each in values(*inputs)]

    def into(*args: torch.Tensor) -> None:
        for out, each in zip(args[: len(outs)], values(*args[len(outs) :]), strict=True):
            out.copy_(each)

    compiled = compat.compile_function(into, (*outs, *inputs))
    return _best_us(lambda: compiled(*outs, *inputs)) / inputs[0].numel()


def _best_us(run: Callable[[], Any], hopeless_us: float = float("inf")) -> float:
    """The best of a few runs (what else runs on the machine only ever adds), or of two if these already lose.

    The first does not count: oneDNN generates a kernel's code in it, milliseconds for a GEMM of microseconds.
    """
    if _time_us(run) > 1e6:  # nothing of use takes a second
        return _time_us(run)
    times = [_time_us(run), _time_us(run)]
    if min(times) > 2 * hopeless_us:
        return min(times)
    while (len(times) < REPEATS and sum(times) < MAX_TOTAL_US) or (
        sum(times) < MIN_TOTAL_US and len(times) < 10 * REPEATS
    ):
        times.append(_time_us(run))
    return min(times)


def _time_us(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e6


# ---------------------------------------------------------------- memory


def cache_dir() -> Path:
    """Where measured times are kept: $LOKA_CACHE_DIR, else ~/.cache/loka."""
    return Path(os.environ.get("LOKA_CACHE_DIR") or Path.home() / ".cache" / "loka")


def _key(*parts: Any) -> str:
    return " ".join(str(part) for part in parts)


@functools.cache
def _file() -> Path:
    """One file a processor with its instruction sets, number of cores and threads, torch version, kernels and way of
    timing: a time is only comparable in them."""
    modules = [sys.modules[type(provider).__module__] for provider in PROVIDERS.values()]
    sources = (__file__, int_mm.__file__, quantization.__file__, *(module.__file__ for module in modules))
    kernels = b"".join(Path(str(source)).read_bytes() for source in sources)
    machine = f"{processor()} {os.cpu_count()} {torch.get_num_threads()} {torch.__version__}".encode() + kernels
    return cache_dir() / f"times-{hashlib.sha256(machine).hexdigest()[:16]}.json"


@functools.cache
def _times() -> dict[str, float]:
    return _read()


def _read() -> dict[str, float]:
    try:
        times = {str(k): float(v) for k, v in json.loads(_file().read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return {}  # measured anew
    return {k: v for k, v in times.items() if 0 <= v < float("inf")}


def _remembered(key: str, measure: Callable[[], float]) -> float:
    times = _times()
    if key not in times:
        with compat.outside_compilation(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            times[key] = measure()
        _save(times)
    return times[key]


def recall(key: str) -> float | None:
    """A number kept on disk for this machine, thread count and torch version."""
    return _times().get(key)


def remember(key: str, value: float) -> None:
    _times()[key] = value
    _save(_times())


def _save(times: dict[str, float]) -> None:
    """Whole file at once, so that processes side by side never read half of one, and with what they wrote."""
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=_file().parent, delete=False) as scratch:
            json.dump({**_read(), **times}, scratch, indent=0, sort_keys=True)
        os.replace(scratch.name, _file())
    except OSError:
        pass  # a read-only home: the times last as long as the process
