"""What CompSkip, a window and Kunlun's own parts are worth: FLOPs on the graph, throughput, and NE.

    python examples/kunlun/bench.py [--size medium] [--batch 32] [--rounds 15] [--seeds 3] [--json FILE]

The requests are those of the test set with the longest histories, every sequence filled up to 512 tokens, which the
FLOPs and the times include. Every variant is compiled by loka in the model's own precision (`recipes: ()`, as it is
trained) and all take turns; a training step is forward, loss and backward. NE is that of models trained with the
variant on all training ratings, with the histories they have. Every time printed is measured here;
FLOPs are counted on the graph after loka's passes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it also runs as a plain script

from examples.apart import APART
from examples.kunlun import data, flops, train
from examples.kunlun.data import Batch, Histories
from examples.kunlun.sizes import SIZES, Size, without_personalisation
from examples.metrics import Race

WINDOW = 64
COUNTED = 4  # requests that FLOPs are counted on
KINDS = ("inference", "training")


@dataclass(frozen=True)
class Variant:
    """How one differs from the model as it is: loka's options, the model's parts, its size."""

    options: dict[str, object] = field(default_factory=dict)
    changes: dict[str, object] = field(default_factory=dict)
    resize: Callable[[Size], Size] = lambda size: size


AS_IT_IS = "as it is"
VARIANTS = {
    AS_IT_IS: Variant(),
    "CompSkip": Variant({"compskip": "alternate"}),
    "window": Variant({"window": WINDOW}),
    "CompSkip and window": Variant({"compskip": "alternate", "window": WINDOW}),
    "without GDPA": Variant(changes={"gdpa": False}),
    "without HSP": Variant(changes={"hsp": False}),
    "without event-level personalisation": Variant(resize=without_personalisation),
}
# (variant, figure, kind): what it must show, as a change against the model as it is
WANTED = {
    ("CompSkip", "flops", "inference"): -0.43,
    ("CompSkip", "throughput", "inference"): 0.50,
    ("CompSkip", "throughput", "training"): 0.35,
    ("window", "flops", "inference"): -0.29,
    ("window", "throughput", "inference"): 0.31,
}


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 140)
    found = data.load()
    size = SIZES["tiny" if options.quick else options.size]
    batch = longest(found, options.batch, size.max_length)
    figures: dict[str, dict[str, object]] = {name: {} for name in options.variants}
    for kind in KINDS:
        for name, of in measure(found, size, batch, kind, options).items():
            figures[name][kind] = of
    for name in options.variants:
        figures[name]["ne"] = entropies(found, size, VARIANTS[name], options)
    results: dict[str, object] = {
        "size": options.size,
        "batch": options.batch,
        "length": size.max_length,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "times": "measured on this CPU",
        "variants": figures,
        "criteria": criteria(figures),
    }
    console.print(table(figures, size, options))
    for line, (wanted, seen) in results["criteria"].items():
        met = "met" if abs(seen) >= abs(wanted) and seen * wanted > 0 else "MISSED"
        console.print(f"{line}: {seen:+.1%}, wanted {wanted:+.0%}: {met}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def longest(found: Histories, count: int, length: int) -> Batch:
    """The test requests with the longest histories, filled up to `length`."""
    lengths = found.lengths(found.test, length).sum(dim=1)
    return found.batch(found.test[lengths.argsort(descending=True)[:count]], length, pad_to=length)


def measure(
    found: Histories, size: Size, batch: Batch, kind: str, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """By variant: GFLOPs a request, milliseconds a call, requests a second, and throughput over the model as it is."""
    torch.compiler.reset()
    count, calls = {}, {}
    given = {**train.loka_options(), "race": False}  # nothing to plan; a race would compile every variant again
    few = longest(found, COUNTED, size.max_length)
    for name in options.variants:
        variant = VARIANTS[name]
        torch.manual_seed(0)
        model = train.kunlun(found, variant.resize(size), dropout=0.0, **variant.changes)
        model.train(kind == "training")
        step = stepper(batch, kind)
        count[name] = flops.of_graph(model, variant.options, stepper(few, kind)) / COUNTED
        compiled = torch.compile(model, backend="loka", options={**given, **variant.options}, **APART)
        step(compiled)
        calls[name] = lambda step=step, compiled=compiled: step(compiled)
    race = Race(calls)
    for _ in race.rounds(options.rounds):
        pass
    return {
        name: {
            "gflops": count[name] / 1e9,
            "ms": race.ms(name),
            "requests_per_second": 1e3 * len(batch.labels) / race.ms(name),
            "throughput": race.speedup(name, over=AS_IT_IS) - 1,
            "flops": count[name] / count[AS_IT_IS] - 1,
        }
        for name in options.variants
    }


def stepper(batch: Batch, kind: str) -> Callable[[Callable[..., Tensor]], object]:
    """What is timed of a model: a call without gradients, or forward, loss and backward."""

    @torch.no_grad()
    def infer(call: Callable[..., Tensor]) -> object:
        return call(*batch.inputs)

    def learn(call: Callable[..., Tensor]) -> object:
        return binary_cross_entropy_with_logits(call(*batch.inputs), batch.labels).backward()

    return infer if kind == "inference" else learn


def entropies(found: Histories, size: Size, variant: Variant, options: argparse.Namespace) -> list[float]:
    """NE on the test set of one trained model a seed."""
    rows = (found.train[-2048:], found.test[:1024]) if options.quick else (found.train, found.test)
    settings = {**train.loka_options(), **variant.options}
    found_ne = []
    for seed in range(options.seeds):
        torch.compiler.reset()
        found_ne.append(train.run(found, *rows, variant.resize(size), seed, settings, **variant.changes)["ne"])
    return found_ne


def criteria(figures: dict[str, dict[str, object]]) -> dict[str, tuple[float, float]]:
    """What it must show: wanted and seen, for the variants that ran."""
    return {
        f"{name}, {figure}, {kind}": (wanted, figures[name][kind][figure])
        for (name, figure, kind), wanted in WANTED.items()
        if name in figures
    }


def table(figures: dict[str, dict[str, object]], size: Size, options: argparse.Namespace) -> Table:
    """One line a variant."""
    found = Table(
        title=f"Kunlun: width {size.width}, {size.layers} layers, {size.max_length} tokens a sequence, batch "
        f"{options.batch}, {options.rounds} rounds, {torch.get_num_threads()} threads"
    )
    found.add_column("variant")
    for column in ("GFLOP a request", "", "inference /s", "", "training /s", "", "NE, mean", "NE, from .. to"):
        found.add_column(column, justify="right")
    for name, of in figures.items():
        inference, training, ne = of["inference"], of["training"], of["ne"]
        found.add_row(
            name,
            f"{inference['gflops']:.3f}",
            f"{inference['flops']:+.1%}",
            f"{inference['requests_per_second']:.1f}",
            f"{inference['throughput']:+.1%}",
            f"{training['requests_per_second']:.1f}",
            f"{training['throughput']:+.1%}",
            *([f"{fmean(ne):.4f}", f"{min(ne):.4f} .. {max(ne):.4f}"] if ne else ["-", "-"]),
        )
    return found


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3, help="trained models a variant; 0 for FLOPs and time alone")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="these, beside the model as it is")
    parser.add_argument("--quick", action="store_true", help="a tiny model: a rehearsal, no result")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args(argv)
    options.variants = [name for name in VARIANTS if name == AS_IT_IS or name in (options.only or VARIANTS)]
    return options


if __name__ == "__main__":
    main()
