"""How long until there is a plan: loka's first calls against Inductor's own first call, with empty caches.

    python examples/bench_first_call.py [--models dlrm ...] [--rounds 3] [--dynamic] [--json FILE]

Three ways, each model and each of them in a process of its own with empty caches, in turns:

    inductor   torch.compile(model), its first call
    profile    loka with a profile that was made before: its first call, which makes the plan and races it
    online     loka with nothing: its calls until one has run under a plan

Before the clock starts, every process compiles one small linear layer, so that imports and the compiler's own start
count for nobody. A ratio is taken round by round; of the rounds the median is printed. So is that of processor seconds,
g++'s among them, which tells more than the clock on a machine that does something else as well. With --dynamic the
batch is dynamic, and a call of `SMALL` rows behind the first ones is timed too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

import loka_compile as loka
from examples.kunlun.data import SOURCES, Events
from examples.kunlun.model import Kunlun
from examples.kunlun.sizes import SIZES
from examples.models.blocks import MultiHeadAttention, mlp_stack
from examples.models.dcnv2 import DCNv2
from examples.models.dlrm import DLRM
from examples.models.mmoe import MMoE
from examples.models.wukong import Wukong, mlp

CARDINALITIES, GENRES = (944, 8, 3, 22, 1683, 10, 12, 12, 12), 19
"""As in MovieLens-100k. Values do not matter to how long compiling takes; ids are drawn."""
WAYS = ("inductor", "profile", "online")
WANTED = {"profile": 1.5, "online": 2.0}
"""Times Inductor's own first call."""
SMALL, LENGTH = 7, 64
"""Rows of a small batch; events of a history."""
MAX_CALLS = 20
"""Calls after which an online plan must be there."""

Inputs = tuple[Any, ...]


class DIN(nn.Module):
    """Deep Interest Network: what a user did, weighed by how it fits the item at hand, beside the item and the user."""

    def __init__(self, items: int, users: int, width: int = 32) -> None:
        super().__init__()
        self.items, self.users = nn.Embedding(items, width), nn.Embedding(users, width)
        self.fit = mlp(4 * width, 80, 40, 1, dropout=0.0, activation=nn.Sigmoid)
        self.top = mlp(3 * width, 200, 80, 1, dropout=0.0, activation=nn.PReLU)

    def forward(self, user: Tensor, item: Tensor, history: Tensor) -> Tensor:
        """(B,), (B,) and (B, T) of int64 to logits (B,)."""
        at, past = self.items(item), self.items(history)
        beside = at.unsqueeze(1).expand_as(past)
        fit = self.fit(torch.cat([beside, past, beside - past, beside * past], dim=-1))  # (B, T, 1)
        interest = (fit * past).sum(dim=1)
        return self.top(torch.cat([interest, at, self.users(user)], dim=-1)).squeeze(1)


def transformer() -> nn.Module:
    return nn.Sequential(MultiHeadAttention(128), mlp_stack(128, 2), MultiHeadAttention(128), nn.Linear(128, 1))


def rows(batch: int) -> Inputs:
    ids = torch.stack([torch.randint(0, size, (batch,)) for size in CARDINALITIES], dim=1)
    return ids, torch.randint(0, GENRES, (batch, 6))


def histories(batch: int) -> Inputs:
    return torch.randint(943, (batch,)), torch.randint(1682, (batch,)), torch.randint(1682, (batch, 50))


def requests(batch: int) -> Inputs:
    ids, _ = rows(batch)

    def events() -> Events:
        shape = (batch, LENGTH)
        films, stars, genres = torch.randint(0, 1683, shape), torch.randint(0, 6, shape), torch.rand(*shape, GENRES)
        return Events(films, stars, genres, torch.rand(shape).cumsum(1), torch.rand(shape) < 0.9)

    return ids, torch.rand(batch, GENRES), tuple(events() for _ in SOURCES)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Inputs], int]] = {
    "tower": (
        lambda: nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 1)),
        lambda batch: (torch.randn(batch, 256),),
        1024,
    ),
    "dlrm": (lambda: DLRM(CARDINALITIES, GENRES), rows, 1024),
    "dcnv2": (lambda: DCNv2(CARDINALITIES, GENRES), rows, 1024),
    "mmoe": (lambda: MMoE(CARDINALITIES, GENRES), rows, 1024),
    "wukong": (lambda: Wukong(CARDINALITIES, GENRES), rows, 1024),
    "kunlun": (lambda: Kunlun(CARDINALITIES, GENRES, SIZES["small"], SOURCES), requests, 32),
    "transformer": (transformer, lambda batch: (torch.randn(batch, 64, 128),), 64),
    "din": (lambda: DIN(1683, 944), histories, 512),
}
"""The model, its inputs for a batch, and how many rows."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    if options.child:
        print(json.dumps(child(options)))
        return {}
    console = Console(width=None if sys.stdout.isatty() else 120)
    results: dict[str, Any] = {"processor": processor(), "torch": torch.__version__, "models": {}}
    results["rounds"] = options.rounds
    for name in options.models:
        results["models"][name] = measured = compare(name, options)
        told = (f"{way} {m['seconds']:.1f} s, {m['cpu']:.1f} of the processor" for way, m in measured.items())
        console.print(f"{name}: " + "; ".join(told))
    for mean, ratio in (("geometric_mean", "ratio"), ("geometric_mean_cpu", "cpu_ratio")):
        models = results["models"].values()
        results[mean] = {way: geometric_mean(model[way][ratio] for model in models) for way in options.ways}
    console.print(table(results, options))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def compare(name: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every way in turns; of each the medians, and its ratios to Inductor's."""
    rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
    with tempfile.TemporaryDirectory() as scratch:
        profile = Path(scratch) / "model.profile"
        model, batch = made(name, options.batch)
        with torch.no_grad(), loka.probe(model) as probe:
            model(*batch)
        probe.save(profile)
        for number in range(options.rounds):
            for way in options.ways if number % 2 == 0 else reversed(options.ways):
                rounds[way].append(in_a_process(name, way, profile, options))
    result = {}
    for way, found in rounds.items():
        result[way] = {"seconds": median(each["first"] for each in found), "all": found}
        result[way]["cpu"] = median(each["cpu"] for each in found)
        against = list(zip(found, rounds["inductor"], strict=True))
        result[way]["ratio"] = median(a["first"] / b["first"] for a, b in against)
        result[way]["cpu_ratio"] = median(a["cpu"] / b["cpu"] for a, b in against)
        if options.dynamic:
            result[way]["small"] = median(each["small"] for each in found)
    return result


def in_a_process(name: str, way: str, profile: Path, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", way, "--models", name, "--profile", str(profile)]
    command += ["--batch", str(options.batch)] if options.batch else []
    command += ["--dynamic"] if options.dynamic else []
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "LOKA_CACHE_DIR": f"{cache}/loka"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{name}, {way}: {' '.join(command)} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def child(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds until there is a plan, or until Inductor has answered once; and what was planned."""
    (name,), way = options.models, options.child
    model, batch = made(name, options.batch)
    dynamic = True if options.dynamic else None
    ways = {
        "inductor": lambda: torch.compile(model, dynamic=dynamic),
        "profile": lambda: torch.compile(model, backend="loka", dynamic=dynamic, options={"profile": options.profile}),
        "online": lambda: torch.compile(model, backend="loka", dynamic=dynamic),
    }
    with torch.no_grad():
        torch.compile(nn.Linear(8, 8))(torch.randn(4, 8))
        torch.compiler.reset()
        compiled = ways[way]()
        start, used = time.perf_counter(), processor_seconds()
        compiled(*batch)
        calls = 1
        while way == "online" and calls < MAX_CALLS and not planned(compiled):
            compiled(*batch)
            calls += 1
        found = {"first": time.perf_counter() - start, "cpu": processor_seconds() - used, "calls": calls}
        if options.dynamic:
            small = MODELS[name][1](SMALL)
            start = time.perf_counter()
            compiled(*small)
            found["small"] = time.perf_counter() - start
    if way != "inductor":
        plan = loka.plan(compiled, graph=0)
        found |= {"chosen": {key: str(d.chosen) for key, d in plan.decisions.items()}, "raced": plan.raced}
    return found


def processor_seconds() -> float:
    """Of this process, and of those it started that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def planned(compiled: Any) -> bool:
    """Whether a call has run under a plan."""
    try:
        return not loka.plan(compiled).origin.startswith("nothing")
    except ValueError:  # measured code has just been left, and no other was compiled yet
        return False


def made(name: str, batch: int | None) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    make, inputs, default = MODELS[name]
    return make().eval(), inputs(batch or default)


def processor() -> str:
    """Its name, and which instructions PyTorch uses of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else "unknown processor"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def table(results: dict[str, Any], options: argparse.Namespace) -> Table:
    title = f"until there is a plan, measured here on {results['processor']}\nempty caches, medians of {options.rounds}"
    shown, others = Table(title=title), [way for way in options.ways if way != "inductor"]
    for column in ("model", "Inductor, s", *(text for way in others for text in (f"{way}, s", "ratio", "in CPU s"))):
        shown.add_column(column, justify="left" if column == "model" else "right")
    for name, ways in results["models"].items():
        found = [ways[way] for way in others]
        cells = [f"{m['seconds']:.1f} {m['ratio']:.2f}x {m['cpu_ratio']:.2f}x".split() for m in found]
        shown.add_row(name, f"{ways['inductor']['seconds']:.1f}", *(text for three in cells for text in three))
        if options.dynamic:
            small = [text for m in found for text in (f"{m['small']:.1f}", "", "")]
            shown.add_row(f"  then {SMALL} rows", f"{ways['inductor']['small']:.1f}", *small)
    means = [(results["geometric_mean"][way], results["geometric_mean_cpu"][way]) for way in others]
    cells = [text for clock, cpu in means for text in ("", f"{clock:.2f}x", f"{cpu:.2f}x")]
    shown.add_row("geometric mean", "", *cells, style="bold")
    shown.caption = "asked for: " + ", ".join(f"{way} {most:g}x" for way, most in WANTED.items())
    return shown


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, help="rows, in place of each model's own number")
    parser.add_argument("--dynamic", action="store_true", help="a dynamic batch, and then a small one")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--profile", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if "inductor" not in options.ways:
        parser.error("--ways: inductor is what the others are compared with")
    return options


if __name__ == "__main__":
    main()
