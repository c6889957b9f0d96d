"""A floor under a graph's time: what its products take alone, each at its fastest. No code of the graph is faster."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from loka_compile import compat
from loka_compile.dispatch import timing
from loka_compile.dispatch.budget import Trial
from loka_compile.dispatch.sizes import Sizes
from loka_compile.graph.site import Site


def floor_of(trial: Trial, inputs: Sequence[Any]) -> Callable[[], float]:
    """The floor of a graph that may be traced, once it is asked for."""
    return functools.cache(lambda: floor_us(trial.sites, inputs))


def floor_us(sites: Iterable[Site], inputs: Sequence[Any]) -> float:
    """Microseconds of the products of a graph on these inputs. Equal ones count once, as Inductor computes them once;
    those with a dimension of 1, which it may write into what stands around them, count nothing."""
    seen, total = set(), 0.0
    for site in sites:
        sizes = Sizes(*(compat.hint_of(size, inputs) for size in (site.batch, site.M, site.N, site.K)))
        operands = site.op, site.lhs.tensor or site.key, site.rhs.tensor or site.key
        counts = site.dtype.is_floating_point and sizes.batch and min(sizes.M, sizes.N, sizes.K) > 1
        if operands in seen or not counts:
            continue
        seen.add(operands)
        total += timing.keep_us(site, sizes)
    return total
