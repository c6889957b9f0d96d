"""How long compiling takes, loka (with a plan) against Inductor's default, on the quickstart's Wukong.

    python examples/bench_compile.py [--rounds 3] [--training] [--json FILE]

Every compilation is a process of its own with empty caches; variants take turns, and the ratio is taken round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

BATCH = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--training", action="store_true", help="forward and backward instead of inference")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=("inductor", "loka"), help=argparse.SUPPRESS)
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(compile_once(args.child, args.plan, args.training))
        return

    with tempfile.TemporaryDirectory() as scratch:
        plan = make_plan(Path(scratch) / "plan.json", args.training)
        seconds: dict[str, list[float]] = {"inductor": [], "loka": []}
        for number in range(args.rounds):
            for name in seconds if number % 2 == 0 else reversed(seconds):
                seconds[name].append(in_a_process(name, plan, args.training))
                print(f"round {number + 1}: {name} {seconds[name][-1]:.2f} s", flush=True)
    ratio = statistics.median(a / b for a, b in zip(seconds["loka"], seconds["inductor"], strict=True))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    what = "training step" if args.training else "inference"
    print(
        f"first call, {what}, empty caches, medians measured here: "
        f"Inductor {medians['inductor']:.2f} s, loka {medians['loka']:.2f} s, ratio {ratio:.2f}"
    )
    if args.json:
        args.json.write_text(json.dumps({"seconds": seconds, "ratio": ratio}, indent=1))


def make_plan(path: Path, training: bool) -> Path:
    """The plan that dispatch makes for this machine."""
    import torch

    import loka_compile as loka

    model, batch = model_and_batch()
    with loka.probe(model) as probe, torch.set_grad_enabled(training):
        out = model(*batch)
        if training:
            out.square().mean().backward()
    plan = loka.dispatch(probe.profile)
    print(f"plan: {len(plan.lowered)} of {len(plan.decisions)} sites lowered", flush=True)
    plan.save(path)
    return path


def in_a_process(name: str, plan: Path, training: bool) -> float:
    command = [sys.executable, __file__, "--child", name, "--plan", str(plan), *(["--training"] if training else [])]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "LOKA_CACHE_DIR": cache}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def compile_once(name: str, plan: str, training: bool) -> float:
    """Seconds of the first call, less those of the second, which computes without compiling."""
    import torch

    model, batch = model_and_batch()
    compiled = torch.compile(model, backend=name, options={"plan": plan} if name == "loka" else None)

    def call() -> float:
        start = time.perf_counter()
        out = compiled(*batch)
        if training:
            out.square().mean().backward()
        return time.perf_counter() - start

    with torch.set_grad_enabled(training):
        first, second = call(), call()
    return first - second


def model_and_batch():
    import torch

    from examples.models.wukong import Wukong

    torch.manual_seed(0)
    cardinalities = (944, 8, 3, 22, 1683, 10, 12, 12, 12)
    model = Wukong(cardinalities, 19).eval()
    ids = torch.stack([torch.randint(0, size, (BATCH,)) for size in cardinalities], dim=1)
    return model, (ids, torch.randint(0, 19, (BATCH, 6)))


if __name__ == "__main__":
    main()
