"""What probing costs: time, memory, disk; offline, and online while a model runs.

    python examples/bench_probe.py [--calls 4000] [--json FILE] [--quick]

Prints each cost beside its limit, where it has one. Every figure is measured here.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

import loka_compile as loka
from examples import movielens
from examples.apart import APART
from examples.metrics import Race
from examples.models.wukong import Wukong
from examples.quickstart import TINY

MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """One figure. limit: the most it may be, None where it is only for information."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool | None:
        return None if self.limit is None else self.value <= self.limit


class Stack(nn.Module):
    """As many square linears as there are to be sites, each with a norm and a ReLU."""

    def __init__(self, sites: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(sites))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(sites))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x)).relu()
        return x


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Measures everything and returns what `--json` writes."""
    options = parse(argv)
    if options.child:
        train_a_little(probed=options.child == "probed", quick=options.quick)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return {}
    costs = [*scoring(options), *probing(options), memory(options), *first_batch(options), *online(options)]
    table = Table(title=f"what probing costs; {torch.get_num_threads()} threads, measured on this CPU")
    for column in ("", "figure", "at most", ""):
        table.add_column(column, justify="right" if column in ("figure", "at most") else "left")
    marks = {True: "[green]✓ pass[/]", False: "[red]✗ FAIL[/]", None: ""}
    for cost in costs:
        limit = "" if cost.limit is None else f"{cost.limit:g} {cost.unit}"
        table.add_row(f"{cost.name} [dim]{cost.note}[/]", f"{cost.value:.4g} {cost.unit}", limit, marks[cost.passed])
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    results = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "costs": [asdict(cost) | {"passed": cost.passed} for cost in costs],
    }
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def scoring(options: argparse.Namespace) -> list[Cost]:
    """A model of 40 sites: what scoring drawn pairs takes, and how large its profile is."""
    sites, width = (4, 32) if options.quick else (40, 1024)
    torch.manual_seed(0)
    model, x = Stack(sites, width), torch.randn(1024, width)
    with loka.probe(model) as probe, torch.no_grad():
        model(x)
    start = time.perf_counter()
    profile = probe.profile  # statistics are there; pairs are drawn and scored now
    seconds = time.perf_counter() - start
    pairs = sorted({each.pairs for known in profile.sites.values() for each in known.drawn.values()})
    with tempfile.NamedTemporaryFile() as file:
        profile.save(file.name)
        size = Path(file.name).stat().st_size / MIB
    note = f"{len(profile.sites)} sites of {width} x {width}, all recipes, {pairs[0]} to {pairs[-1]} pairs each"
    return [
        Cost("scoring", seconds, "s", 60.0, note),
        Cost("profile on disk", size, "MiB", 64.0, f"{len(profile.sites)} sites of {width} x {width}"),
    ]


def wukong(quick: bool) -> tuple[nn.Module, movielens.MovieLens]:
    torch.manual_seed(0)
    data = movielens.load()
    return Wukong(data.cardinalities, data.genres, **(TINY if quick else {})), data


def probing(options: argparse.Namespace) -> list[Cost]:
    """A training step under the probe against a plain one; later calls are no longer scored."""
    model, data = wukong(options.quick)
    part = data.train[: 64 if options.quick else 1024]

    def step() -> None:
        binary_cross_entropy_with_logits(model(part.ids, part.genres), part.labels).backward()

    times: dict[str, list[float]] = {}
    for name in ("plain", "probed"):
        times[name] = []
        with loka.probe(model) if name == "probed" else torch.enable_grad():
            for _ in range(4 if options.quick else 12):
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
    plain = median(times["plain"][1:])
    steps = f"Wukong, batch {len(part)}, forward and backward"
    return [
        Cost("a probed step that is scored", times["probed"][1] / plain, "x", None, steps),
        Cost("a later probed step", times["probed"][-1] / plain, "x", None, "statistics only"),
    ]


def train_a_little(probed: bool, quick: bool) -> None:
    model, data = wukong(quick)
    part = data.train[: 64 if quick else 4096]
    with loka.probe(model) if probed else torch.enable_grad():
        for _ in range(6):
            binary_cross_entropy_with_logits(model(part.ids, part.genres), part.labels).backward()
            model.zero_grad()


def memory(options: argparse.Namespace) -> Cost:
    """Largest resident memory of a process that trains under the probe, over one that trains without."""
    peak = {}
    for child in ("plain", "probed"):
        command = [sys.executable, __file__, "--child", child, *(["--quick"] if options.quick else [])]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peak[child] = int(out.strip().splitlines()[-1])
    note = f"Wukong, training at batch 4096: {peak['plain'] / MIB:.0f} MiB without"
    return Cost("memory while probing", peak["probed"] / peak["plain"], "x", 1.2, note)


def first_batch(options: argparse.Namespace) -> list[Cost]:
    """Seconds from torch.compile to the first answer. loka only measures in it; Inductor generates code."""
    model, data = wukong(options.quick)
    batch = data.train[: 64 if options.quick else 1024].batches(1024)[0]
    model.eval()
    seconds = {}
    for backend in ("loka", "inductor"):
        torch.compiler.reset()
        start = time.perf_counter()
        with torch.no_grad(), torch.compiler.config.patch(force_disable_caches=True):  # nothing from earlier runs
            torch.compile(model, backend=backend)(*batch)
        seconds[backend] = time.perf_counter() - start
    return [
        Cost("time to the first answer, online", seconds["loka"], "s", None, "Wukong, nothing cached"),
        Cost("Inductor's", seconds["inductor"], "s"),
    ]


def online(options: argparse.Namespace) -> list[Cost]:
    """Calls of an online model against the same plan without watching, in turns of a hundred calls."""
    model, data = wukong(options.quick)
    batch = data.train[: 64 if options.quick else 512].batches(512)[0]
    model.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watched = torch.compile(model, backend="loka", **APART)
        for _ in range(6):
            watched(*batch)
        plan = loka.plan(watched)
        pinned = torch.compile(model, backend="loka", options={"plan": plan}, **APART)
        hundred = lambda call: lambda: [call(*batch) for _ in range(100)]  # noqa: E731
        race = Race({"watched": hundred(watched), "pinned": hundred(pinned)})
        for _ in race.rounds(max(2, options.calls // 100)):
            pass
    (note,) = (note for note in loka.explain(watched).notes if "online" in note)
    found = re.search(r"of ([\d,]+) since, (\d+) measured again, ([\d.]+)%", note)
    assert found is not None, note
    calls, measured, share = found.groups()
    total = sum(race.times["watched"]) / sum(race.times["pinned"])
    return [
        Cost("online: measuring again", float(share), "%", 1.0, f"of the calls' time; {measured} of {calls} calls"),
        Cost("online: all calls over a pinned plan's", total, "x", None, "totals, taking turns"),
    ]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, help="calls of the online model (4000; 200 with --quick)")
    parser.add_argument("--quick", action="store_true", help="tiny models: a rehearsal, no result")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--child", choices=("plain", "probed"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.calls = options.calls or (200 if options.quick else 4000)
    return options


if __name__ == "__main__":
    main()
