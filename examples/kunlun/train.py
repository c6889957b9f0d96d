"""Trains Kunlun on MovieLens-100k, one pass with Adam, and says how well it predicts the ratings that came later.

    python examples/kunlun/train.py [--size medium] [--compskip] [--window 64] [--seeds 3] [--json FILE]

The model is compiled by loka in its own precision (`recipes: ()`); with CompSkip or a window it is trained as it will
be served. Rates and hidden ids are those of examples/training.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it also runs as a plain script

from examples.kunlun import data
from examples.kunlun.data import SOURCES, Histories
from examples.kunlun.model import Kunlun
from examples.kunlun.sizes import SIZES, Size
from examples.metrics import quality
from examples.movielens import FIELDS
from examples.training import ID_DROPOUT, evaluating, fit

BATCH = 256


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse(argv)
    found = data.load()
    train, test = (found.train[-2048:], found.test[:1024]) if options.quick else (found.train, found.test)
    size = SIZES["tiny" if options.quick else options.size]
    runs = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        torch.compiler.reset()
        runs.append(run(found, train, test, size, seed, loka_options(options.compskip, options.window)))
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.4f}" for name, value in runs[-1].items()), flush=True)
    results = {
        "size": options.size,
        "compskip": options.compskip,
        "window": options.window,
        "first_seed": options.first_seed,
        "runs": runs,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    entropies = [each["ne"] for each in runs]
    print(f"NE {fmean(entropies):.4f}, from {min(entropies):.4f} to {max(entropies):.4f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def loka_options(compskip: bool = False, window: int | None = None) -> dict[str, object]:
    """What loka is asked for: no low precision, no watching, and the passes that change the model."""
    options: dict[str, object] = {"recipes": (), "measure_calls": 0}
    if compskip:
        options["compskip"] = "alternate"
    if window:
        options["window"] = window
    return options


def run(
    found: Histories, train: Tensor, test: Tensor, size: Size, seed: int, options: dict[str, object], **changes: object
) -> dict[str, float]:
    """AUC, log loss and NE on `test` of a model trained on `train` from this seed, and the seconds it took."""
    torch.manual_seed(seed)
    model = kunlun(found, size, **changes)
    call = torch.compile(model, backend="loka", options=options)
    start = time.perf_counter()
    for step, loss in enumerate(learn(model, call, found, train, size.max_length), start=1):
        if step % 50 == 0:
            print(f"  step {step}: log loss {loss:.4f}", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    logits, labels = predict(call, found, test, size.max_length)
    return {**quality(logits, labels), "train_seconds": seconds}


def kunlun(found: Histories, size: Size, **changes: object) -> Kunlun:
    """A Kunlun for this data."""
    id_dropout = tuple(ID_DROPOUT.get(field, 0.0) for field in FIELDS)
    return Kunlun(found.cardinalities, found.genres.shape[1], size, SOURCES, id_dropout=id_dropout, **changes)


def learn(
    model: nn.Module, call: Callable[..., Tensor], found: Histories, rows: Tensor, max_length: int
) -> Iterator[float]:
    """One pass over `rows` through `call`, the model as compiled; yields log losses, leaves the model in eval mode."""
    batches = found.batches(rows, BATCH, max_length, shuffle=True)
    return fit(model, ((batch.inputs, batch.labels) for batch in batches), call, -(-len(rows) // BATCH) + 1)


@torch.no_grad()
def predict(call: Callable[..., Tensor], found: Histories, rows: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
    """Logits and labels of `rows`, in an order of their own and in eval mode."""
    with evaluating(call):
        parts = [(call(*batch.inputs), batch.labels) for batch in found.batches(rows, BATCH, max_length)]
    logits, labels = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(labels)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--compskip", action="store_true", help="alternate: attention in odd layers, the rest in even")
    parser.add_argument("--window", type=int, help="attend to this many events on either side")
    parser.add_argument("--seeds", type=int, default=1, help="how many models to train")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tiny model on a few ratings: a rehearsal, no result")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
