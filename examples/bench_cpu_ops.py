"""Every loka op's CPU path under Inductor, beside the computation it replaces; measured on this machine.

    python examples/bench_cpu_ops.py [--rounds 20] [--quick] [--only WORD ...] [--json FILE]

An op's CPU path is its reference, plain operations that torch.compile sees and fuses; a frozen product is an op of its
own, beside the product that quantizes its weight at every call. No pass puts gemm_norm or its frozen form into a CPU's
graph; where a model calls them, the pass lower writes them out as they are timed here. Variants take turns, in an order
drawn anew each round; a ratio is the median of the rounds' ratios. gdpa, pffn and fm are bench_gdpa.py's, inference.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

from examples import bench_gdpa
from examples.metrics import Race

# The one look behind the public API: the ops themselves.
quantize, norm_quantize, backward, gemm_norm, frozen, frozen_norm = (
    importlib.import_module(f"loka_compile.kernels.{name}")
    for name in (
        "quantize.quantize",
        "norm_quantize.norm_quantize",
        "norm_quantize.norm_quantize_backward",
        "gemm_norm.gemm_norm",
        "gemm.frozen_gemm",
        "gemm_norm.frozen_gemm_norm",
    )
)
E4M3, INT8 = torch.float8_e4m3fn, torch.int8
EPS = 1e-5
Epilogue, GemmNorm, RowNorm = frozen_norm.Epilogue, frozen_norm.GemmNorm, norm_quantize.RowNorm
Case = tuple[Callable[..., Any], Callable[..., Any], list[Any]]


def plain_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    top = 127.0 if dtype == INT8 else 448.0
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / top
    return ((x / scale).round() if dtype == INT8 else (x / scale).clamp(-top, top)).to(dtype), scale


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.layer_norm(x, x.shape[-1:], weight, bias, EPS))


def cases(quick: bool) -> dict[str, Case]:
    """By name: loka's form, the plain form, operands."""
    torch.manual_seed(0)
    made: dict[str, Case] = {}
    for m, n, k in [(64, 32, 32)] if quick else [(4096, 512, 512), (1024, 1024, 256)]:
        x, y, w = torch.randn(m, k), torch.randn(m, n), torch.randn(n, k) / k**0.5
        linear, weight, bias = torch.nn.Parameter(w), torch.rand(n), torch.randn(n)
        at = f"{m}x{n}x{k}"
        for dtype, word in ((INT8, "int8"), (E4M3, "fp8")):
            made[f"quantize rows {word} {at}"] = rows_case(y, dtype)
            made[f"norm_quantize layer relu {word} {at}"] = norm_case(y, weight, bias, dtype)
        made[f"norm layer relu {at}"] = norm_case(y, weight, bias, torch.float32)
        made[f"norm_quantize_backward layer relu {at}"] = backward_case(y, weight, bias)
        made[f"gemm_norm layer relu {at}"] = gemm_norm_case(x, w, weight, bias)
        made[f"frozen_gemm int8 {at}"] = frozen_case(x, linear)
        made[f"frozen_gemm_norm layer relu {at}"] = frozen_norm_case(x, linear, weight, bias)
    return made | bench_gdpa.cases(quick)


def rows_case(x: Tensor, dtype: torch.dtype) -> Case:
    return lambda x: quantize.reference(x, dtype, "row", -1), lambda x: plain_rows(x, dtype), [x]


def norm_case(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Case:
    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        named = "layer", 0, "relu", dtype, EPS, False
        return norm_quantize.reference(norm_quantize.NormQuantize.bind(x, weight, bias, None, *named))[:2]

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        y = plain_norm(x, weight, bias)
        return (y, y.new_empty(0)) if dtype == torch.float32 else plain_rows(y, dtype)

    return ours, plain, [x, weight, bias]


def backward_case(x: Tensor, weight: Tensor, bias: Tensor) -> Case:
    """The gradient of norm and activation; autograd's is made by AOTAutograd, with the forward it needs."""
    grad = torch.randn_like(x)
    forward = norm_quantize.NormQuantize(x, weight, bias, None, RowNorm("layer", 0, "relu", x.dtype, EPS, save=True))
    kept = norm_quantize.reference(forward).statistics
    names = "layer", 0, "relu", x.dtype, False, False

    def ours(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return backward.reference(backward.NormQuantizeBackward(grad, x, kept, weight, bias, *names, gain=1.0))

    def plain(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        mean, rstd = kept.unsqueeze(-1).unbind(1)
        above = grad * ((x - mean) * rstd * weight + bias > 0)
        return torch.ops.aten.native_layer_norm_backward(
            above, x, x.shape[-1:], mean, rstd, weight, bias, [True, True, True]
        )

    return ours, plain, [grad, x, weight, bias]


def gemm_norm_case(x: Tensor, w: Tensor, weight: Tensor, bias: Tensor) -> Case:
    def ours(x: Tensor, w: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        epilogue = Epilogue(None, None, weight, bias, None, RowNorm("layer", 0, "relu", x.dtype, EPS, save=False))
        return gemm_norm.composed(GemmNorm(x, None, w, None, epilogue)).out

    return ours, lambda x, w, weight, bias: plain_norm(F.linear(x, w), weight, bias), [x, w, weight, bias]


def frozen_case(x: Tensor, linear: Tensor) -> Case:
    """Plain: the weight is quantized at every call."""

    def ours(x: Tensor, linear: Tensor) -> Tensor:
        q, scale = quantize.reference(x, INT8, "row", -1)
        acc, (other, _) = frozen.frozen_int_mm(q, linear, True)
        return acc.float() * scale * other

    def plain(x: Tensor, linear: Tensor) -> Tensor:
        (q, scale), (p, other) = plain_rows(x, INT8), plain_rows(linear, INT8)
        return torch._int_mm(q, p.t()).float() * scale * other.t()

    return ours, plain, [x, linear]


def frozen_norm_case(x: Tensor, linear: Tensor, weight: Tensor, bias: Tensor) -> Case:
    """In bfloat16: plain casts the weight at every call."""
    bf16 = torch.bfloat16

    def ours(x: Tensor, linear: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        epilogue = Epilogue(None, None, weight, bias, None, RowNorm("layer", 0, "relu", bf16, EPS, save=False))
        return frozen_norm.composed(frozen_norm.FrozenGemmNorm(x, None, linear, True, bf16, epilogue)).out

    def plain(x: Tensor, linear: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return plain_norm(F.linear(x, linear.to(bf16)).float(), weight.float(), bias.float()).to(bf16)

    return ours, plain, [x.to(bf16), linear, weight.to(bf16), bias.to(bf16)]


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 140)
    results: dict[str, dict[str, float]] = {}
    for name, (ours, plain, operands) in cases(options.quick).items():
        if options.only and not any(word in name for word in options.only):
            continue
        calls = {label: compiled(function, operands) for label, function in (("loka", ours), ("plain", plain))}
        check(name, calls["loka"](), calls["plain"]())
        race = Race(calls)
        for _ in race.rounds(options.rounds, warm_up=2):
            pass
        results[name] = {
            "loka_ms": race.ms("loka"),
            "plain_ms": race.ms("plain"),
            "speedup": race.speedup("loka", "plain"),
        }
    title = f"Under Inductor, {options.rounds} rounds, {torch.get_num_threads()} threads; measured"
    table = Table("case", "loka ms", "plain ms", "speed-up", title=title)
    for name, found in results.items():
        table.add_row(name, f"{found['loka_ms']:.3f}", f"{found['plain_ms']:.3f}", f"{found['speedup']:.2f}x")
    console.print(table)
    body: dict[str, object] = {"cases": results, "threads": torch.get_num_threads()}
    body["slower"] = [name for name, found in results.items() if found["speedup"] < 0.95]
    console.print(f"slower by more than 5 %: {', '.join(body['slower']) or 'none'}")  # type: ignore[arg-type]
    if options.json:
        options.json.write_text(json.dumps(body, indent=2) + "\n")
    return body


def compiled(function: Callable[..., Any], operands: list[Any]) -> Callable[[], Any]:
    made = torch.compile(function, dynamic=False)

    def call() -> Any:
        with torch.no_grad():
            return made(*operands)

    return call


def check(name: str, ours: Any, plain: Any) -> None:
    """They compute the same: to the last step of the format where they quantize."""
    (first, *_), (second, *_) = (x if isinstance(x, tuple) else (x,) for x in (ours, plain))
    noise = (first.float() - second.float()).norm() / second.float().norm()
    assert noise < (0.02 if first.dtype != torch.float32 or "int8" in name else 1e-3), f"{name}: {noise}"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--only", nargs="*", default=[], help="cases whose names hold one of these words")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
