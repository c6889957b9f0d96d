"""loka's Triton kernels on a GPU: measured next to modelled, and against what else could do the same work.

    python examples/bench_kernels.py [--kernel NAME] [--rounds 30] [--json FILE]
    python examples/bench_kernels.py --dry-run [--target sm_90]        on a machine without a GPU: what would run

Every launch that `loka kernels` lists is run on random operands. Beside it, at the same sizes: torch's `_scaled_mm`,
what Inductor makes of the same computation, and the libraries that are installed. Variants take turns in an order drawn
anew each round; before each the L2 cache is flushed; CUDA events time it. The flush also lets the CPU run ahead, so a
launch costs what the GPU sees of it. Modelled is a roofline at the attained shares loka's targets state.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import random
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

from examples.kernel_rivals import Call, missing, rivals

# The one look behind the public API: the kernels' own launches, and the model printed beside them.
kernel_list = importlib.import_module("loka_compile.machine.kernel_list")
kernel_report = importlib.import_module("loka_compile.machine.kernel_report")
chips = importlib.import_module("loka_compile.spec.chips")

FLUSH_BYTES = 512 * 2**20  # more than any L2 (or MI300X's 256 MiB of Infinity Cache)


@dataclass
class Result:
    """One listed launch. us: measured by variant, medians; skipped: why a variant was not run."""

    name: str
    module: str
    modelled_us: float | None
    unfused_us: float | None
    us: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Runs (or lists) everything and returns what `--json` writes."""
    options = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 160)
    device = "" if options.dry_run else "cuda"
    if device and not torch.cuda.is_available():
        raise SystemExit("bench_kernels: there is no GPU here; --dry-run lists what would run on one")
    try:
        [arch] = chips.arch_of(arch_here() if device else options.target)
    except ValueError as error:
        raise SystemExit(f"bench_kernels: {error}") from error
    results = []
    for module, specimen in kernel_list.specimens(arch, options.kernel):
        results.append(result_of(module, specimen, arch, 0 if options.dry_run else options.rounds))
    console.print(table(results, arch))
    device_name = torch.cuda.get_device_name() if device else None
    body = {
        "arch": arch,
        "device": device_name,
        "torch": torch.__version__,
        "rounds": options.rounds,
        "kernels": [vars(result) for result in results],
    }
    if options.json:
        options.json.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return body


def result_of(module: str, specimen: Any, arch: str, rounds: int) -> Result:
    """The launch beside its rivals; without rounds what would run."""
    result = Result(specimen.name, module, *modelled(specimen, arch))
    makers = rivals(module, specimen.name, arch)
    if rounds:
        race(result, specimen, makers, rounds)
    else:
        result.skipped = {"loka": "dry run"} | {name: missing(name) or "dry run" for name in makers}
    return result


def arch_here() -> str:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    if torch.version.hip:
        return properties.gcnArchName.partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def modelled(specimen: Any, arch: str) -> tuple[float | None, float | None]:
    """Microseconds of the launch and of the sequence it replaces."""
    bits = 8 * min((each.element_size() for each in operands(specimen.launch.args) if each.dim() > 1), default=2)
    chip, launch = chips.CHIPS[arch], specimen.launch
    fused = kernel_report.modelled(chip, bits, [(launch.flops, launch.nbytes)])
    unfused = kernel_report.modelled(chip, bits, [costs for _, *costs in specimen.unfused])
    return fused.us, unfused.us if specimen.unfused else None


# ---------------------------------------------------------------- measuring


def race(result: Result, specimen: Any, makers: Mapping[str, Callable[[str], Call]], rounds: int) -> None:
    """Everything that can run, in turns. A variant that cannot says why."""
    calls: dict[str, Call] = {"loka": materialize(specimen.launch, "cuda").run}
    for name, make in makers.items():
        if why := missing(name):
            result.skipped[name] = why
            continue
        try:
            calls[name] = make("cuda")
            calls[name]()
        except Exception as error:  # a library that refuses a shape is a result, not the end
            calls.pop(name, None)
            result.skipped[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:100]}"
    result.us = timed(calls, rounds)


def timed(calls: Mapping[str, Call], rounds: int, warm_up: int = 3) -> dict[str, float]:
    """Median microseconds by variant."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    order, events = random.Random(0), {name: [] for name in calls}
    for number in range(-warm_up, rounds):
        for name in order.sample(list(calls), len(calls)):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            calls[name]()
            end.record()
            if number >= 0:
                events[name].append((start, end))
    torch.cuda.synchronize()
    return {name: 1e3 * median(start.elapsed_time(end) for start, end in pairs) for name, pairs in events.items()}


def operands(args: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among a launch's arguments, those of TMA descriptors too."""
    values = [getattr(value, "base", value) for value in args.values()]
    return [value for value in values if isinstance(value, Tensor)]


def materialize(launch: Any, device: str) -> Any:
    """The launch with random operands in the place of those on the meta device. What two arguments share stays shared.

    Offsets (`cu_seqlens`) divide the rows evenly; other integers of 32 and 64 bits are zero: locks and counters.
    """
    made: dict[int, Tensor] = {}
    rows = max((each.shape[0] for each in operands(launch.args) if each.dim() > 1), default=0)

    def real(name: str, like: Tensor) -> Tensor:
        if id(like) not in made:
            tensor = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)
            if re.search("offset|seqlen|^cu_", name):
                tensor.copy_(torch.linspace(0, rows, like.numel()).round())
            elif like.dtype in (torch.int32, torch.int64):
                tensor.zero_()
            elif like.is_floating_point():
                tensor.copy_(torch.randn(like.shape, device=device))
            else:
                tensor.random_(0, 2)
            made[id(like)] = tensor
        return made[id(like)]

    def argument(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return real(name, value)
        return replace(value, base=real(name, value.base)) if hasattr(value, "base") else value

    return replace(launch, args={name: argument(name, value) for name, value in launch.args.items()})


# ---------------------------------------------------------------- printing


def table(results: list[Result], arch: str) -> Table:
    """All variants of every launch; what did not run says why."""
    caption = "µs: measured, median, L2 flushed. modelled: roofline, at the attained shares of loka's target."
    out = Table(title=f"loka's kernels on {arch}", caption=caption, title_justify="left", caption_justify="left")
    for column in ("kernel", "variant", "µs", "modelled µs", "modelled / measured", "loka over it", "note"):
        out.add_column(column, justify="left" if column in ("kernel", "variant", "note") else "right")
    for result in results:
        for name in [*result.us, *result.skipped]:
            us = result.us.get(name)
            model = result.modelled_us if name == "loka" else None
            cells = [
                "–" if us is None else f"{us:.1f}",
                "–" if model is None else f"{model:.1f}",
                f"{model / us:.0%}" if us and model else "–",
                f"{us / result.us['loka']:.2f}x" if us and "loka" in result.us else "–",
            ]
            out.add_row(
                result.name, name, *cells, result.skipped.get(name, ""), style="bold" if name == "loka" else None
            )
        if result.unfused_us is not None:
            out.add_row(result.name, "unfused, modelled", "–", f"{result.unfused_us:.1f}", "–", "–", "")
        out.add_section()
    return out


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default="", help="only those with this in their name")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--dry-run", action="store_true", help="list what would run; needs no GPU")
    parser.add_argument("--target", default="sm_90", help="the chip a dry run is for")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
