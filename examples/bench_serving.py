"""What hoisting is worth in serving: one user, many candidates, a DLRM with a deep user tower.

    python examples/bench_serving.py [--candidates 500] [--json FILE]

A ranking model is trained on rows of user and item. To serve it, one user's features are repeated for every candidate
and the trained model reads the rows: that is `Serving`, and all that is written here. The variants are that module
compiled by Inductor, by loka without the exact passes, by loka with them (both with every GEMM in float32), and by loka
with all it has. They are raced in turns; every time printed is measured here.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

import loka_compile as loka
from examples.apart import APART
from examples.metrics import Race
from examples.models.dlrm import Tokens
from examples.models.wukong import mlp

EXACT = ("hoist", "merge", "batch", "reassociate", "mix_tokens")
MIN_SPEEDUP = 2.0
VARIANTS: dict[str, dict[str, object]] = {
    "loka, exact passes off": {"recipes": (), "passes": dict.fromkeys(EXACT, False)},
    "loka, exact passes on": {"recipes": ()},
    "loka, all it has": {"measure_calls": 0},
}
SIZES = {"width": 64, "tower": (1024, 1024, 1024, 512), "top": (512, 256)}
QUICK = {"width": 8, "tower": (64, 32), "top": (32,)}
USER, ITEM = (6040, 7, 2, 21, 3439, 100), (3706, 81, 301)
"""Ids of each field, as in MovieLens-1M with some more."""
BAG = 20


class TwoSided(nn.Module):
    """A DLRM on rows of user and item: a tower over the user's fields and history, pairwise products of its result with
    the item's vectors, and a top that reads all of it. (B, fields) and (B, most) of int64 to logits (B,)."""

    def __init__(self, width: int, tower: tuple[int, ...], top: tuple[int, ...]) -> None:
        super().__init__()
        self.user, self.item = Tokens(USER, ITEM[0], width), Tokens(ITEM, BAG, width)
        self.tower = mlp((len(USER) + 1) * width, *tower, width, dropout=0.1)
        n = len(ITEM) + 2
        self.register_buffer("pairs", torch.triu_indices(n, n, offset=1), persistent=False)
        self.top = mlp(n * (n - 1) // 2 + n * width, *top, 1, dropout=0.1)

    def forward(self, user: Tensor, history: Tensor, item: Tensor, bag: Tensor) -> Tensor:
        taste = self.tower(self.user(user, history).flatten(1))  # (B, d)
        x = torch.cat([taste.unsqueeze(1), self.item(item, bag)], dim=1)  # (B, n, d)
        products = (x @ x.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat([products, x.flatten(1)], dim=1)).squeeze(1)


class Serving(nn.Module):
    """The model for one user, (1, fields) and (1, most), and N candidates, (N, fields) and (N, most): logits (N,)."""

    def __init__(self, model: TwoSided) -> None:
        super().__init__()
        self.model = model

    def forward(self, user: Tensor, history: Tensor, item: Tensor, bag: Tensor) -> Tensor:
        n = item.shape[0]
        return self.model(user.expand(n, -1), history.expand(n, -1), item, bag)


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 120)
    torch.manual_seed(0)
    model = Serving(TwoSided(**(QUICK if options.quick else SIZES))).eval()
    request = request_of(options.candidates)
    with torch.no_grad():
        expected = model(*request)
        calls = {"Inductor": torch.compile(model, **APART)}
        for name, chosen in VARIANTS.items():
            calls[name] = torch.compile(model, backend="loka", options=chosen, **APART)
        errors = {name: relative(call(*request), expected) for name, call in calls.items()}
        race = Race({name: lambda call=call: call(*request) for name, call in calls.items()})
        for _ in race.rounds(options.rounds):
            pass
    results = {name: {"ms": race.ms(name), "error": errors[name]} for name in calls}
    for name in calls:
        results[name]["speedup"] = race.speedup(name, over="Inductor")
    gain = race.speedup("loka, exact passes on", over="loka, exact passes off")
    console.print(table(results, options.candidates))
    console.print(f"the exact passes are worth {gain:.2f}x (at least {MIN_SPEEDUP}x asked for)")
    console.print("\n".join(note for note in loka.explain(calls["loka, exact passes on"]).notes))
    figures: dict[str, object] = {"candidates": options.candidates, "gain": gain, "variants": results}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return figures


def request_of(candidates: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One user with a history, and the candidates."""
    ids = lambda rows, sizes: torch.stack([torch.randint(size, (rows,)) for size in sizes], 1)  # noqa: E731
    history = torch.randint(1, ITEM[0], (1, 50))
    return ids(1, USER), history, ids(candidates, ITEM), torch.randint(1, BAG, (candidates, 4))


def relative(out: Tensor, expected: Tensor) -> float:
    """RMS error over the RMS of what was expected."""
    return float((out - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def table(results: dict[str, dict[str, float]], candidates: int) -> Table:
    shown = Table(title=f"one user, {candidates} candidates (measured here, medians)")
    for column in ("variant", "ms", "over Inductor", "relative error"):
        shown.add_column(column, justify="left" if column == "variant" else "right")
    for name, row in results.items():
        shown.add_row(name, f"{row['ms']:.3f}", f"{row['speedup']:.2f}x", f"{row['error']:.1e}")
    return shown


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=61, help="rounds of the race")
    parser.add_argument("--quick", action="store_true", help="a tiny model: a rehearsal, no result")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
