"""On a real GPU: kernel times from the profiler beside the model's, and the shares of the peaks that were attained.

    measured = measure(model, inputs, "h100", sides=["inductor", "loka"])     # a Preview with measured times
    save_rates(measured, "h100-here.json")
    loka.preview(model, inputs, "h100", calibration="h100-here.json")         # modelled with these from then on

Launches are recorded without the GPU, in the worker; here the same step runs and is profiled, and both are laid side by
side in launch order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from loka_compile.preview.model import Rates, kernel_us, rates_of
from loka_compile.preview.report import Preview
from loka_compile.preview.result import Kernel, Side
from loka_compile.spec.target import TARGETS

FORMAT, VERSION = "loka-calibration", 1
FEWEST = 3
"""Kernels bound by compute, or by memory, that a share is the median of at least."""


class CalibrationError(ValueError):
    """A calibration file that cannot be used, or kernels that cannot give one."""


def with_times(side: Side, times: Sequence[tuple[str, float]]) -> Side:
    """The side with measured microseconds; times: (name, µs) of each kernel that ran, in order.

    A library call may launch several kernels (a split product and its sum): those that run before the next Triton
    kernel of the recording are its own. Where the Triton kernels are not those that were recorded, the side stays as
    it is and says so.
    """
    ours = [kernel.name for kernel in side.kernels if kernel.kind == "triton"]
    theirs = [place for place, (name, _) in enumerate(times) if name in set(ours)]
    if [times[place][0] for place in theirs] != ours:
        return replace(side, notes=(*side.notes, "not measured: the GPU ran other Triton kernels than were recorded"))
    anchors = iter([*theirs, len(times)])
    kernels: list[Kernel] = []
    at, until = 0, next(anchors)
    waiting: list[Kernel] = []

    def settle(end: int) -> None:
        """Library calls between two Triton kernels: one kernel each, or together what ran there, by modelled bytes."""
        spent = [us for _, us in times[at:end]]
        if len(spent) != len(waiting):
            total = sum(kernel.bytes for kernel in waiting) or 1
            spent = [sum(spent) * kernel.bytes / total for kernel in waiting]
        kernels.extend(replace(kernel, us=us) for kernel, us in zip(waiting, spent, strict=True))
        waiting.clear()

    for kernel in side.kernels:
        if kernel.kind == "library":
            waiting.append(kernel)
            continue
        settle(until)
        kernels.append(replace(kernel, us=times[until][1]))
        at, until = until + 1, next(anchors)
    settle(until)
    return replace(side, kernels=tuple(kernels))


def attained(kernels: Sequence[Kernel], rates: Rates) -> Rates:
    """Shares of the peaks these measured kernels attained, by the median of those that compute, or memory, bounds.

    Kernel times of a profiler have no launches in them, so what launching costs stays as it was. A share with fewer
    than FEWEST kernels stays too. Raises CalibrationError where neither can be told.
    """
    shares: dict[str, list[float]] = {"compute": [], "memory": []}
    for kernel in kernels:
        if kernel.us:
            us, bound = kernel_us(kernel.flops, kernel.bytes, kernel.dtype, replace(rates, launch=0.0))
            shares[bound].append(us / kernel.us)
    enough = {bound: median(found) for bound, found in shares.items() if len(found) >= FEWEST}
    if not enough:
        raise CalibrationError(f"expected at least {FEWEST} measured kernels bound by compute or by memory")
    flops = min(1.0, rates.flops * enough.get("compute", 1.0))
    return replace(rates, flops=flops, bandwidth=min(1.0, rates.bandwidth * enough.get("memory", 1.0)))


def save_rates(preview: Preview, path: str | Path) -> Rates:
    """Write the shares that a measured preview's kernels attained. Raises CalibrationError where none were."""
    rates = attained([kernel for side in preview.sides for kernel in side.kernels], preview.rates)
    rates = replace(rates, origin=f"calibrated on {preview.where} ({Path(path).name})")
    body = {"format": FORMAT, "version": VERSION, "target": rates.target, "where": preview.where}
    body |= {"flops": rates.flops, "bandwidth": rates.bandwidth, "launch_seconds": rates.launch}
    Path(path).write_text(json.dumps(body, indent=1) + "\n")
    return rates


def load_rates(path: Any, target: str) -> Rates:
    """A target's entry in a calibration file. Raises CalibrationError."""
    try:
        body = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise CalibrationError(f"cannot read calibration {path}: {error}") from error
    if not isinstance(body, Mapping) or body.get("format") != FORMAT or body.get("version") != VERSION:
        raise CalibrationError(f"{path} is not a calibration of this version: make it with save_rates")
    if body.get("target") != target:
        raise CalibrationError(f"{path} is of {body.get('target')!r}, asked for was {target!r}")
    shares: dict[str, Any] = {name: body.get(name) for name in ("flops", "bandwidth", "launch_seconds")}
    for name, value in shares.items():
        if not isinstance(value, int | float) or not 0 < value <= 1:
            raise CalibrationError(f"{path}: {name} must be a share between 0 and 1 (of a second), got {value!r}")
    rates = replace(rates_of(TARGETS[target]), flops=shares["flops"], bandwidth=shares["bandwidth"])
    return replace(rates, launch=shares["launch_seconds"], origin=f"calibrated on {body['where']} ({Path(path).name})")
