"""loka.gdpa, loka.pffn and loka.fm on this CPU, beside the same written with plain operations; both under Inductor.

    python examples/bench_gdpa.py [--rounds 20] [--quick] [--json FILE]

Variants take turns, in an order drawn anew each round. Times are medians, measured here; a ratio is the median of the
rounds' ratios. Training is forward and backward. On a GPU the kernels are what examples/bench_kernels.py measures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

import loka_compile as loka
from examples.metrics import Race

Function = Callable[..., Tensor]
WINDOW = 64


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.gelu(q @ k.mT) @ v


def plain_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    place = torch.arange(q.shape[-2])
    near = (place[:, None] - place[None, :]).abs() <= WINDOW
    return F.silu(torch.where(near, q @ k.mT, 0.0)) @ v


def plain_pffn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def rows(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    width = q.shape[1] * q.shape[3]
    ln = F.layer_norm(rows(q), [width]).unflatten(2, (q.shape[1], -1)).transpose(1, 2)
    z = rows(plain_attention(ln, k, v) + ln)
    return F.rms_norm(z, [width], eps=1e-5).unflatten(2, (q.shape[1], -1)).transpose(1, 2) + q


def plain_fm(x: Tensor, y: Tensor) -> Tensor:
    out = x @ (x.mT @ y)
    return F.layer_norm(out.flatten(1), [out[0].numel()]).view_as(out)


def cases(quick: bool) -> dict[str, tuple[Function, Function, list[Tensor]]]:
    """By name: loka's form, the plain form, operands."""
    batch = 2 if quick else 16

    def attention(queries: int, keys: int) -> list[Tensor]:
        return [torch.randn(batch, 2, n, 64) for n in (queries, keys, keys)]

    def tokens(b: int, n: int, d: int, k: int) -> list[Tensor]:
        return [torch.randn(batch * b // 16, n, size) for size in (d, k)]

    window = lambda *qkv: loka.gdpa(*qkv, activation="silu", window=WINDOW)  # noqa: E731
    return {
        "gdpa, 128 keys": (loka.gdpa, plain_attention, attention(512, 128)),
        "gdpa, window 64 of 512": (window, plain_window, attention(512, 512)),
        "pffn, 128 keys": (loka.pffn, plain_pffn, attention(512, 128)),
        "fm 1024x32x128x24": (loka.fm, plain_fm, tokens(1024, 32, 128, 24)),
        "fm 1024x48x224x448": (loka.fm, plain_fm, tokens(1024, 48, 224, 448)),
        "fm 256x24x224x2198": (loka.fm, plain_fm, tokens(256, 24, 224, 2198)),
    }


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 140)
    results: dict[str, dict[str, float]] = {}
    for name, (ours, plain, operands) in cases(options.quick).items():
        torch.testing.assert_close(ours(*operands), plain(*operands), rtol=1e-3, atol=1e-3)
        found = {}
        for phase, training in (("", False), ("training_", True)):
            race = Race(
                {label: call(function, operands, training) for label, function in (("loka", ours), ("plain", plain))}
            )
            for _ in race.rounds(options.rounds, warm_up=2):
                pass
            found |= {
                f"{phase}loka_ms": race.ms("loka"),
                f"{phase}plain_ms": race.ms("plain"),
                f"{phase}speedup": race.speedup("loka", "plain"),
            }
        results[name] = found
    table = Table("case", "loka ms", "plain ms", "speed-up", "training: loka ms", "plain ms", "speed-up")
    for name, found in results.items():
        table.add_row(name, *(f"{v:.2f}" + ("x" if k.endswith("speedup") else "") for k, v in found.items()))
    table.title = f"float32 under Inductor, {options.rounds} rounds, {torch.get_num_threads()} threads; measured"
    console.print(table)
    body: dict[str, object] = {"cases": results, "threads": torch.get_num_threads()}
    body["criteria"] = {"never slower (5 % of noise)": min(each["speedup"] for each in results.values()) > 0.95}
    console.print(body["criteria"])
    if options.json:
        options.json.write_text(json.dumps(body, indent=2) + "\n")
    return body


def call(function: Function, operands: list[Tensor], training: bool) -> Callable[[], object]:
    compiled = torch.compile(function, dynamic=False)
    if not training:
        return lambda: compiled(*operands)
    leaves = [each.clone().requires_grad_() for each in operands]
    grad = torch.randn_like(function(*operands))
    return lambda: torch.autograd.grad(compiled(*leaves), leaves, grad)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
