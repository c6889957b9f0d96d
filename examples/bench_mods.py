"""What the mods cost and gain: each alone and all together, on a Wukong with SiLU.

    python examples/bench_mods.py [--seeds 3] [--json FILE]

Latency is that of the model's dense part at batch 1024, in inference, under loka and under Inductor, raced in turns. NE
is that of a model that was trained with the mods (loka.adapt) on MovieLens-100k, on ratings it has not seen, for every
seed. Every time printed is measured here.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

import loka_compile as loka
from examples import movielens, training
from examples.apart import APART
from examples.metrics import Race, quality
from examples.models.wukong import Wukong
from examples.quickstart import TINY

MODS = ("no_bias", "block_norm", "hard_swish")
VARIANTS = {"as it is": (), **{name: (name,) for name in MODS}, "all three": MODS}
BATCH = 1024
MIN_SPEEDUP = 1.1


class Dense(nn.Module):
    """A Wukong without its tables: tokens (B, n, d) to logits (B,)."""

    def __init__(self, model: Wukong) -> None:
        super().__init__()
        self.layers, self.head = model.layers, model.head

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.flatten(1)).squeeze(1)


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 140)
    data = movielens.load()
    sizes = {"activation": nn.SiLU, **(TINY if options.quick else {})}
    latency = race(training.wukong(data, **sizes).eval(), options)
    entropy = {
        name: [ne(data, sizes, mods, seed, options) for seed in range(options.seeds)] for name, mods in VARIANTS.items()
    }
    results = {
        "batch": BATCH,
        "seeds": options.seeds,
        "latency": latency,
        "ne": entropy,
        "threads": torch.get_num_threads(),
    }
    table = Table("variant", "loka ms", "over as it is", "Inductor ms", "over as it is", "NE, mean", "NE, from .. to")
    for name in VARIANTS:
        ours, theirs, found = latency["loka"][name], latency["inductor"][name], entropy[name]
        figures = [f"{ours['ms']:.2f}", f"{ours['speedup']:.2f}x", f"{theirs['ms']:.2f}", f"{theirs['speedup']:.2f}x"]
        spread = [f"{fmean(found):.4f}", f"{min(found):.4f} .. {max(found):.4f}"] if found else ["-", "-"]
        table.add_row(name, *figures, *spread)
    table.title = f"Mods on a Wukong: batch {BATCH}, {options.rounds} rounds, {torch.get_num_threads()} threads"
    console.print(table)
    console.print("ms: median of one call, measured on this CPU; ratios: medians of the rounds' ratios")
    results["criteria"] = {"all three at least 1.1x under loka": latency["loka"]["all three"]["speedup"] >= MIN_SPEEDUP}
    console.print(results["criteria"])
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return results


def race(model: Wukong, options: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Median milliseconds and speed over the unmodified model, by backend and variant."""
    width = model.table.embedding_dim
    x = torch.randn(64 if options.quick else BATCH, model.layers[0].lcb.linear.in_features, width)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for backend in ("loka", "inductor"):
        calls = {}
        for name, mods in VARIANTS.items():
            dense = Dense(copy.deepcopy(model)).eval()
            if mods:
                loka.adapt(dense, (x,), mods=mods)
            given = {"options": {"measure_calls": 0}} if backend == "loka" else {}
            calls[name] = torch.compile(dense, backend=backend, **APART, **given)
        with torch.no_grad():
            for call in calls.values():
                call(x)
            turns = Race({name: lambda call=call: call(x) for name, call in calls.items()})
            for _ in turns.rounds(options.rounds):
                pass
        found[backend] = {n: {"ms": turns.ms(n), "speedup": turns.speedup(n, over="as it is")} for n in VARIANTS}
    return found


def ne(data: movielens.MovieLens, sizes: dict, mods: tuple[str, ...], seed: int, options: argparse.Namespace) -> float:
    """NE on the test ratings of a model trained with the mods from this seed."""
    torch.manual_seed(seed)
    train, test = (data.train[-4096:], data.test[:1024]) if options.quick else (data.train, data.test)
    model = training.wukong(data, **sizes)
    if mods:
        loka.adapt(model, test.batches(64)[0], mods=mods)
    for _ in training.train(model, train, epochs=1):
        pass
    with torch.no_grad():
        logits = training.predict(model, test.batches(1024))[: len(test)]
    return quality(logits, test.labels)["ne"]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trained models a variant; 0 for latency alone")
    parser.add_argument("--rounds", type=int, default=61, help="rounds of the race")
    parser.add_argument("--quick", action="store_true", help="tiny models: a rehearsal, no result")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
