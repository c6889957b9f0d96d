"""What GPUs that are not here would make of whole models: Inductor, loka, and float8 on every linear, side by side.

    python examples/bench_preview.py [--models mlp wukong ...] [--targets h100 b200 mi300x] [--json FILE]

Wukong, DLRM and DCNv2 at the sizes of this folder with batches of MovieLens-100k, Kunlun ("small", sequences filled up
to 128 events, an eighth of the batch), an MLP stack and an attention block with drawn inputs; inference and training
(forward and backward). All in bf16. loka's decisions are those of a probe on
this CPU. Kernels are what torch.compile generates; every time is modelled, none is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

import loka_compile as loka
from examples import movielens, training
from examples.bench import gpu_models
from examples.kunlun import data, train
from examples.kunlun.sizes import SIZES
from examples.models.blocks import MultiHeadAttention, mlp_stack
from examples.models.dcnv2 import DCNv2
from examples.models.dlrm import DLRM

WANTED = {"inference": 1.4, "training": 1.2}
"""loka over Inductor, geometric mean of the models on an H100, modelled."""
TORCHAO = ("torchao rowwise", "torchao tensorwise") if importlib.util.find_spec("torchao") else ()
LENGTH = 128
"""Tokens of Kunlun's sequences."""
Made = tuple[nn.Module, tuple[torch.Tensor, ...]]


def ranking(make: Callable[[movielens.MovieLens], nn.Module]) -> Callable[[int], Made]:
    def made(batch: int) -> Made:
        data = movielens.load()
        return make(data), tuple(data.test.batches(batch)[0])

    return made


def kunlun(batch: int) -> Made:
    found = data.load()
    of_kunlun = found.batch(found.test[: batch // 8], LENGTH, pad_to=LENGTH)
    return train.kunlun(found, SIZES["small"]), of_kunlun.inputs  # type: ignore[return-value]


MODELS: dict[str, Callable[[int], Made]] = {
    "wukong": ranking(training.wukong),
    "dlrm": ranking(lambda data: DLRM(data.cardinalities, data.genres)),
    "dcnv2": ranking(lambda data: DCNv2(data.cardinalities, data.genres)),
    "kunlun": kunlun,
    "mlp": lambda batch: (mlp_stack(), (torch.randn(batch, 512),)),
    "mha": lambda batch: (MultiHeadAttention(), (torch.randn(batch // 8, 128, 256),)),
}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs all, prints the tables and returns what `--json` writes."""
    options = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 160)
    rows = []
    with Progress(console=console) as progress:
        task = progress.add_task("preview", total=len(options.models) * len(options.phases) * len(options.targets))
        for name in options.models:
            for phase in options.phases:
                model, inputs, profile = probed(name, phase == "training", options)
                for target in options.targets:
                    progress.update(task, description=f"{name}, {phase}, {target}")
                    rows.append(row(name, phase, target, model, inputs, profile))
                    progress.advance(task)
    console.print(table(rows))
    console.print(*left(rows), sep="\n")
    results = {"batch": options.batch, "times": "modelled", "torch": torch.__version__, "rows": rows}
    results["geometric_means"] = means(rows)
    console.print(verdict(results["geometric_means"], rows))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def probed(name: str, training: bool, options: argparse.Namespace) -> tuple[nn.Module, tuple[torch.Tensor, ...], Any]:
    """A model in bf16, its inputs, and what a probe on this CPU learns of it."""
    torch.manual_seed(0)
    model, inputs = MODELS[name](options.batch)
    model, inputs = model.to(torch.bfloat16).train(training), in_bf16(inputs)
    return model, inputs, gpu_models.probed(model, inputs, training)


def in_bf16(value: Any) -> Any:
    """Tensors of floats, wherever they are in tuples."""
    if isinstance(value, tuple):
        items = map(in_bf16, value)
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value.to(torch.bfloat16) if value.is_floating_point() else value


def row(name: str, phase: str, target: str, model: nn.Module, inputs: Any, profile: Any) -> dict[str, Any]:
    """One line of the table: modelled microseconds and speed-ups over Inductor by side, and loka's kernels."""
    started = time.perf_counter()
    sides = ("inductor", "loka", *TORCHAO)
    found = loka.preview(model, inputs, target, phase == "training", sides=sides, profile=profile, measure=False)
    body = {side["name"]: side for side in found.to_json()["sides"]}
    return {
        "model": name,
        "phase": phase,
        "target": target,
        "seconds": time.perf_counter() - started,
        "rates": str(found.rates),
        "us": {side: body[side]["totals"]["modelled_us"] for side in body},
        "us_cuda_graphs": {side: body[side]["totals"]["modelled_us_cuda_graphs"] for side in body},
        "kernels": {side: body[side]["totals"]["kernels"] for side in body},
        "gbytes": {side: body[side]["totals"]["bytes"] / 1e9 for side in body},
        "speedup": {side: found.speedup(side) for side in body},
        "errors": {side: body[side]["error"] for side in body if body[side]["error"]},
        "loka_kernels": [
            {k: each[k] for k in ("name", "site", "bound_by", "modelled_us")} for each in body["loka"]["kernels"]
        ],
    }


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of loka's speed-ups over Inductor, by phase and target."""
    found: dict[str, dict[str, list[float]]] = {}
    for each in rows:
        if each["speedup"]["loka"]:
            found.setdefault(each["phase"], {}).setdefault(each["target"], []).append(each["speedup"]["loka"])
    return {phase: {target: geometric_mean(x) for target, x in of.items()} for phase, of in found.items()}


def table(rows: list[dict[str, Any]]) -> Table:
    columns = ["inductor", "loka", *TORCHAO]
    out = Table(title="One step in bf16, µs modelled (over Inductor bf16; kernels)", caption=rows[0]["rates"])
    for name in ("model", "phase", "target", *columns):
        out.add_column(name, justify="left" if name in ("model", "phase", "target") else "right")
    for each in rows:
        cells = []
        for side in columns:
            speedup = each["speedup"][side]
            cells.append(f"{each['us'][side]:.1f} ({speedup:.2f}x; {each['kernels'][side]})" if speedup else "failed")
        out.add_row(each["model"], each["phase"], each["target"], *cells)
    return out


def left(rows: list[dict[str, Any]]) -> list[str]:
    """Where loka is below what is wanted: the kernels that take most of the step."""
    lines = [
        f"{e['model']}, {e['phase']}, {e['target']}: {side}: {why}" for e in rows for side, why in e["errors"].items()
    ]
    for each in rows:
        speedup = each["speedup"]["loka"]
        if speedup and speedup < WANTED[each["phase"]]:
            took: dict[str, float] = {}
            for kernel in each["loka_kernels"]:
                took[kernel["name"]] = took.get(kernel["name"], 0.0) + kernel["modelled_us"]
            most = sorted(took.items(), key=lambda pair: -pair[1])[:4]
            shares = ", ".join(f"{name} {us / each['us']['loka']:.0%}" for name, us in most)
            lines.append(f"{each['model']}, {each['phase']}, {each['target']}: {speedup:.2f}x; left: {shares}")
    return lines


def verdict(found: dict[str, dict[str, float]], rows: list[dict[str, Any]]) -> Table:
    out = Table(title="loka over Inductor bf16, geometric mean, modelled")
    for name in ("phase", "target", "seen", "wanted on h100", ""):
        out.add_column(name)
    for phase, of in found.items():
        for target, mean in of.items():
            wanted, mark = "", ""
            if target == "h100":
                wanted = f">= {WANTED[phase]}x"
                mark = "[green]✓ pass[/]" if mean >= WANTED[phase] else "[red]✗ FAIL[/]"
            out.add_row(phase, target, f"{mean:.2f}x", wanted, mark)
    slower = [e for e in rows if e["speedup"]["loka"] and e["speedup"]["loka"] < 0.995]
    mark = "[red]✗ FAIL[/]" if slower else "[green]✓ pass[/]"
    out.add_row("rows where loka is slower", "", str(len(slower)), "0", mark)
    return out


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="whole models on GPUs that are not here; every time is modelled")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--targets", nargs="+", default=["h100", "b200", "mi300x"])
    parser.add_argument("--phases", nargs="+", choices=WANTED, default=list(WANTED))
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="one model, inference, h100: a rehearsal")
    options = parser.parse_args(argv)
    if options.quick:
        options.models, options.targets, options.phases, options.batch = ["mlp"], ["h100"], ["inference"], 512
    return options


if __name__ == "__main__":
    main()
