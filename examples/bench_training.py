"""Training under a GPU plan, judged without a GPU: FP8's exact numerics, emulated.

    python examples/bench_training.py [--target h100] [--seeds 3] [--rows 30000] [--json FILE]

Two questions: how far are the gradients of one step from float32's, and does a short training run end at the same
test log loss? The answer to the second is only worth something next to how far seeds differ among themselves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

sys.path.insert(0, str(Path(__file__).parents[1]))

import loka_compile as loka
from examples.metrics import log_loss
from examples.movielens import MovieLens, Split, load
from examples.training import predict, train, wukong

BATCH = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="h100")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=30_000, help="training ratings of a run, the last ones")
    parser.add_argument("--min-speedup", type=float, default=0.0, help="0: every site within the error budget")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    console = Console()

    data = load()
    part = data.train[-args.rows :]
    options = loka.Options(target=args.target, min_speedup=args.min_speedup)
    plan = plan_for(data, part, options)
    console.print(f"plan for {args.target}: {len(plan.lowered)} of {len(plan.decisions)} sites lowered")

    recipes = Counter(decision.chosen.recipe for decision in plan.lowered)
    console.print(", ".join(f"{count} {recipe}" for recipe, count in recipes.items()))

    gradients = gradient_sqnr(data, part, plan)
    worst = min(gradients, key=gradients.get)
    console.print(
        f"gradients of a step against float32: worst {gradients[worst]:.1f} dB ({worst}), "
        f"median {statistics.median(gradients.values()):.1f} dB of {len(gradients)}"
    )

    losses = {"float32": [], f"{args.target} plan": []}
    with Progress(console=console) as progress:
        task = progress.add_task("training", total=2 * args.seeds)
        for seed in range(args.seeds):
            for name, options in (("float32", None), (f"{args.target} plan", {"plan": plan})):
                losses[name].append(trained_log_loss(data, part, seed, options))
                progress.advance(task)

    table = Table("run", *(f"seed {seed}" for seed in range(args.seeds)), "mean", title="test log loss")
    for name, values in losses.items():
        table.add_row(name, *(f"{value:.5f}" for value in values), f"{statistics.mean(values):.5f}")
    console.print(table)
    ours, theirs = losses[f"{args.target} plan"], losses["float32"]
    spread = max(theirs) - min(theirs)
    shift = statistics.mean(ours) - statistics.mean(theirs)
    console.print(f"shift of the mean {shift:+.5f}, spread of the float32 seeds {spread:.5f}")
    if args.json:
        result = {
            "sites": len(plan.decisions),
            "lowered": len(plan.lowered),
            "gradient_sqnr_db": gradients,
            "log_loss": losses,
            "shift": shift,
            "spread": spread,
        }
        args.json.write_text(json.dumps(result, indent=1))


def plan_for(data: MovieLens, part: Split, options: loka.Options) -> loka.Plan:
    """Probe forward and backward on a model that has trained a little, and dispatch."""
    torch.manual_seed(0)
    model = wukong(data)
    for _ in train(model, part[:8192], 1):
        pass
    with loka.probe(model) as probe:
        for start in range(0, 2 * BATCH, BATCH):
            loss(model, part[start : start + BATCH]).backward()
    return loka.dispatch(probe.profile, options=options)


def gradient_sqnr(data: MovieLens, part: Split, plan: loka.Plan) -> dict[str, float]:
    """dB by parameter, on one batch, without dropout (masks would differ between eager and compiled)."""
    torch.manual_seed(0)
    model = wukong(data)
    for _ in train(model, part[:8192], 1):
        pass
    exact = gradients(model, model, part[:BATCH])
    planned = gradients(model, torch.compile(model, backend="loka", options={"plan": plan}), part[:BATCH])
    return {name: sqnr_db(planned[name], exact[name]) for name in exact if exact[name].any()}


def gradients(model: nn.Module, run: nn.Module, split: Split) -> dict[str, Tensor]:
    model.zero_grad()
    loss(run, split).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def loss(model: nn.Module, split: Split) -> Tensor:
    return binary_cross_entropy_with_logits(model(split.ids, split.genres), split.labels)


def sqnr_db(value: Tensor, reference: Tensor) -> float:
    noise = (value.double() - reference.double()).square().sum()
    return float(10 * torch.log10(reference.double().square().sum() / noise.clamp(min=1e-300)))


def trained_log_loss(data: MovieLens, part: Split, seed: int, options: dict | None) -> float:
    """Train one pass over `part` from a seed, compiled under a plan or eager, and test in float32."""
    torch.manual_seed(seed)
    model = wukong(data)
    run = model if options is None else torch.compile(model, backend="loka", options=options)
    for _ in train(run, part, 1):
        pass
    logits = predict(model, data.test.batches(BATCH))[: len(data.test)]
    return log_loss(logits, data.test.labels)


if __name__ == "__main__":
    main()
