"""loka's Triton kernels on a GPU: measured next to modelled, and against what else could do the same work.

    python examples/bench_kernels.py [--kernel NAME] [--rounds 30] [--json FILE]
    python examples/bench_kernels.py --dry-run [--target sm_90]        on a machine without a GPU: what would run

Every launch that `loka kernels` lists is run on random operands. Beside it, at the same sizes: torch's `_scaled_mm`,
what Inductor makes of the same computation, and the libraries that are installed. Variants take turns in an order drawn
anew each round; before each the L2 cache is flushed; CUDA events time it. The flush also lets the CPU run ahead, so a
launch costs what the GPU sees of it. Modelled is a roofline at the attained shares loka's targets state.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import random
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

# The one look behind the public API: the kernels' own launches, and the model printed beside them.
kernel_list = importlib.import_module("loka_compile.machine.kernel_list")
kernel_report = importlib.import_module("loka_compile.machine.kernel_report")
chips = importlib.import_module("loka_compile.spec.chips")

FLUSH_BYTES = 512 * 2**20  # more than any L2 (or MI300X's 256 MiB of Infinity Cache)
EPS = 1e-6
OTHER_WORK = {"of", "silu", "parts", "amax", "both", "tensor", "block", "tile"}
"""What the names of loka's plain kernels hold where no rival does the same: batches, epilogues, halves of the work."""
Call = Callable[[], object]


@dataclass
class Result:
    """One listed launch. us: measured by variant, medians; skipped: why a variant was not run."""

    name: str
    module: str
    modelled_us: float | None
    unfused_us: float | None
    us: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Runs (or lists) everything and returns what `--json` writes."""
    options = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 160)
    device = "" if options.dry_run else "cuda"
    if device and not torch.cuda.is_available():
        raise SystemExit("bench_kernels: there is no GPU here; --dry-run lists what would run on one")
    try:
        [arch] = chips.arch_of(arch_here() if device else options.target)
    except ValueError as error:
        raise SystemExit(f"bench_kernels: {error}") from error
    results = []
    for module, specimen in kernel_list.specimens(arch, options.kernel):
        results.append(result_of(module, specimen, arch, 0 if options.dry_run else options.rounds))
    console.print(table(results, arch))
    device_name = torch.cuda.get_device_name() if device else None
    body = {
        "arch": arch,
        "device": device_name,
        "torch": torch.__version__,
        "rounds": options.rounds,
        "kernels": [vars(result) for result in results],
    }
    if options.json:
        options.json.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return body


def result_of(module: str, specimen: Any, arch: str, rounds: int) -> Result:
    """The launch beside its rivals; without rounds what would run."""
    result = Result(specimen.name, module, *modelled(specimen, arch))
    makers = rivals(module, specimen.name, arch)
    if rounds:
        race(result, specimen, makers, rounds)
    else:
        result.skipped = {"loka": "dry run"} | {name: missing(name) or "dry run" for name in makers}
    return result


def arch_here() -> str:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    if torch.version.hip:
        return properties.gcnArchName.partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def modelled(specimen: Any, arch: str) -> tuple[float | None, float | None]:
    """Microseconds of the launch and of the sequence it replaces."""
    bits = 8 * min((each.element_size() for each in operands(specimen.launch.args) if each.dim() > 1), default=2)
    chip, launch = chips.CHIPS[arch], specimen.launch
    fused = kernel_report.modelled(chip, bits, [(launch.flops, launch.nbytes)])
    unfused = kernel_report.modelled(chip, bits, [costs for _, *costs in specimen.unfused])
    return fused.us, unfused.us if specimen.unfused else None


# ---------------------------------------------------------------- measuring


def race(result: Result, specimen: Any, makers: Mapping[str, Callable[[str], Call]], rounds: int) -> None:
    """Everything that can run, in turns. A variant that cannot says why."""
    calls: dict[str, Call] = {"loka": materialize(specimen.launch, "cuda").run}
    for name, make in makers.items():
        if why := missing(name):
            result.skipped[name] = why
            continue
        try:
            calls[name] = make("cuda")
            calls[name]()
        except Exception as error:  # a library that refuses a shape is a result, not the end
            calls.pop(name, None)
            result.skipped[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:100]}"
    result.us = timed(calls, rounds)


def timed(calls: Mapping[str, Call], rounds: int, warm_up: int = 3) -> dict[str, float]:
    """Median microseconds by variant."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    order, events = random.Random(0), {name: [] for name in calls}
    for number in range(-warm_up, rounds):
        for name in order.sample(list(calls), len(calls)):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            calls[name]()
            end.record()
            if number >= 0:
                events[name].append((start, end))
    torch.cuda.synchronize()
    return {name: 1e3 * median(start.elapsed_time(end) for start, end in pairs) for name, pairs in events.items()}


def operands(args: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among a launch's arguments, those of TMA descriptors too."""
    values = [getattr(value, "base", value) for value in args.values()]
    return [value for value in values if isinstance(value, Tensor)]


def materialize(launch: Any, device: str) -> Any:
    """The launch with random operands in the place of those on the meta device. What two arguments share stays shared.

    Offsets (`cu_seqlens`) divide the rows evenly; other integers of 32 and 64 bits are zero: locks and counters.
    """
    made: dict[int, Tensor] = {}
    rows = max((each.shape[0] for each in operands(launch.args) if each.dim() > 1), default=0)

    def real(name: str, like: Tensor) -> Tensor:
        if id(like) not in made:
            tensor = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)
            if re.search("offset|seqlen|^cu_", name):
                tensor.copy_(torch.linspace(0, rows, like.numel()).round())
            elif like.dtype in (torch.int32, torch.int64):
                tensor.zero_()
            elif like.is_floating_point():
                tensor.copy_(torch.randn(like.shape, device=device))
            else:
                tensor.random_(0, 2)
            made[id(like)] = tensor
        return made[id(like)]

    def argument(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return real(name, value)
        return replace(value, base=real(name, value.base)) if hasattr(value, "base") else value

    return replace(launch, args={name: argument(name, value) for name, value in launch.args.items()})


# ---------------------------------------------------------------- what else does this work


def missing(rival: str) -> str:
    """Why a rival cannot be here: the library that its name starts with is not installed."""
    library = rival.partition(" ")[0]
    if library in ("torchao", "fbgemm_gpu") and not importlib.util.find_spec(library):
        return f"{library} is not installed"
    return ""


def rivals(module: str, name: str, arch: str) -> dict[str, Callable[[str], Call]]:
    """By name, functions of a device that make operands and return the call.

    The sizes are those in the specimen's name: MxNxK of a product, RxC of rows, BxNxDxK of a factorization machine,
    BxHxTqxTkxD of attention; a name without any has no rivals.
    """
    found = re.search(r"(\d+(?:x\d+)+)", name)
    sizes = [int(size) for size in found.group(1).split("x")] if found else []
    fp8 = torch.float8_e4m3fnuz if arch == "gfx942" else torch.float8_e4m3fn
    if module.startswith("triton_") and OTHER_WORK & set(name.split()):
        return {}
    if module.startswith("gemm_norm") and " rms relu fp8 to fp8 " not in name:
        return {}
    if len(sizes) == 4 and "fm" in module:
        return interaction_rivals(*sizes)
    if len(sizes) == 5 and name.startswith("gdpa gelu ") and "jagged" not in name:
        return attention_rivals(*sizes)
    if len(sizes) == 3 and "gemm" in module:
        return gemm_rivals(*sizes, fp8, norm="norm" in module, tensorwise="tensor" in name)
    if len(sizes) == 2 and "backward" in module:
        same = " rms relu float8" in name and not name.endswith((" sums", " copy"))
        return backward_rivals(*sizes, fp8) if same else {}
    if len(sizes) == 2 and "quantize" in module:
        return quantize_rivals(*sizes, fp8, norm="norm" in module)
    return {}


def gemm_rivals(
    m: int, n: int, k: int, fp8: torch.dtype, norm: bool, tensorwise: bool
) -> dict[str, Callable[[str], Call]]:
    """A linear, with RMSNorm, ReLU and the quantization of what comes out where loka's kernel has them."""

    def plain(device: str) -> tuple[Tensor, Tensor]:
        x = torch.randn(m, k, device=device, dtype=torch.bfloat16)
        return x, torch.randn(n, k, device=device, dtype=torch.bfloat16) / k**0.5

    def ready(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (a, a_scale), (b, b_scale) = (quantized(each, fp8, tensorwise) for each in plain(device))
        return a, b.t(), a_scale, b_scale.t()

    def after(out: Tensor) -> object:
        return quantized(rms_norm(out).relu(), fp8) if norm else out

    def scaled(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor) -> object:
        out = torch._scaled_mm(a, b, a_scale, b_scale, out_dtype=torch.bfloat16, use_fast_accum=a.is_cuda)
        return after(out)

    def fbgemm(device: str) -> Call:
        importlib.import_module("fbgemm_gpu.experimental.gen_ai")  # registers its operators
        a, b, a_scale, b_scale = ready(device)
        scales = (a_scale.flatten().expand(m).contiguous(), b_scale.flatten().expand(n).contiguous())
        return lambda: after(torch.ops.fbgemm.f8f8bf16_rowwise(a, b.t(), *scales))

    return {
        "_scaled_mm, then Inductor" if norm else "_scaled_mm": lambda device: bound(scaled, ready(device), norm),
        "Inductor bf16": lambda device: bound(lambda x, w: after(F.linear(x, w)), plain(device), compiled=True),
        "torchao float8, Inductor": lambda device: torchao_linear(*plain(device), after),
        "fbgemm_gpu f8f8bf16_rowwise": fbgemm,
    }


def torchao_linear(x: Tensor, weight: Tensor, after: Callable[[Tensor], object]) -> Call:
    """A linear as torchao's row-wise dynamic quantization has it: its activation is quantized in the call."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=x.device, dtype=x.dtype)
    linear.weight.data.copy_(weight)
    model = torch.nn.Sequential(linear)
    quantize_(model, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
    call = torch.compile(lambda x: after(model(x)), dynamic=False)
    with torch.no_grad():
        call(x)
    return torch.no_grad()(lambda: call(x))


def quantize_rivals(rows: int, columns: int, fp8: torch.dtype, norm: bool) -> dict[str, Callable[[str], Call]]:
    """Row-wise, after RMSNorm and ReLU where loka's kernel has them."""

    def make(device: str) -> Call:
        x = torch.randn(rows, columns, device=device, dtype=torch.bfloat16)
        return bound(lambda x: quantized(rms_norm(x).relu() if norm else x, fp8), (x,), compiled=True)

    return {"Inductor": make}


def attention_rivals(batch: int, heads: int, queries: int, keys: int, width: int) -> dict[str, Callable[[str], Call]]:
    """gelu(Q K^T) V, and softmax attention of the same shape, which does the same products."""

    def operands(device: str) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            torch.randn(batch, heads, n, width, device=device, dtype=torch.bfloat16) for n in (queries, keys, keys)
        )
        return q, k, v

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.gelu(q @ k.mT) @ v

    return {
        "Inductor bf16": lambda device: bound(plain, operands(device), compiled=True),
        "scaled_dot_product_attention (softmax)": lambda device: bound(
            F.scaled_dot_product_attention, operands(device)
        ),
    }


def backward_rivals(rows: int, columns: int, fp8: torch.dtype) -> dict[str, Callable[[str], Call]]:
    """The gradient of RMSNorm and ReLU, quantized row-wise."""

    def gradient(grad: Tensor, x: Tensor) -> object:
        wide, g = x.float(), grad.float()
        rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
        n = wide * rstd
        g = torch.where(n <= 0, 0.0, g)
        return quantized((g - n * (g * n).mean(-1, keepdim=True)) * rstd, fp8)

    def make(device: str) -> Call:
        args = tuple(torch.randn(rows, columns, device=device, dtype=torch.bfloat16) for _ in range(2))
        return bound(gradient, args, compiled=True)

    return {"Inductor": make}


def interaction_rivals(batch: int, tokens: int, width: int, columns: int) -> dict[str, Callable[[str], Call]]:
    """X (X^T Y), flattened and normalized."""

    def make(device: str) -> Call:
        x = torch.randn(batch, tokens, width, device=device, dtype=torch.bfloat16)
        y = torch.randn(batch, tokens, columns, device=device, dtype=torch.bfloat16)
        return bound(lambda x, y: rms_norm((x @ (x.mT @ y)).flatten(1)), (x, y), compiled=True)

    return {"Inductor bf16": make}


def bound(function: Callable[..., object], args: tuple[Tensor, ...], compiled: bool = False) -> Call:
    call = torch.compile(function, dynamic=False) if compiled else function
    return lambda: call(*args)


def rms_norm(x: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype)


def quantized(x: Tensor, fp8: torch.dtype, tensorwise: bool = False) -> tuple[Tensor, Tensor]:
    """In FP8 with one scale a row (or one in all, as a 1 x 1 tensor)."""
    wide = x.float()
    amax = wide.abs().amax().reshape(1, 1) if tensorwise else wide.abs().amax(-1, keepdim=True)
    scale = amax.clamp(min=1e-12) / torch.finfo(fp8).max
    return (wide / scale).to(fp8), scale


# ---------------------------------------------------------------- printing


def table(results: list[Result], arch: str) -> Table:
    """All variants of every launch; what did not run says why."""
    caption = "µs: measured, median, L2 flushed. modelled: roofline, at the attained shares of loka's target."
    out = Table(title=f"loka's kernels on {arch}", caption=caption, title_justify="left", caption_justify="left")
    for column in ("kernel", "variant", "µs", "modelled µs", "modelled / measured", "loka over it", "note"):
        out.add_column(column, justify="left" if column in ("kernel", "variant", "note") else "right")
    for result in results:
        for name in [*result.us, *result.skipped]:
            us = result.us.get(name)
            model = result.modelled_us if name == "loka" else None
            cells = [
                "–" if us is None else f"{us:.1f}",
                "–" if model is None else f"{model:.1f}",
                f"{model / us:.0%}" if us and model else "–",
                f"{us / result.us['loka']:.2f}x" if us and "loka" in result.us else "–",
            ]
            out.add_row(
                result.name, name, *cells, result.skipped.get(name, ""), style="bold" if name == "loka" else None
            )
        if result.unfused_us is not None:
            out.add_row(result.name, "unfused, modelled", "–", f"{result.unfused_us:.1f}", "–", "–", "")
        out.add_section()
    return out


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default="", help="only those with this in their name")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--dry-run", action="store_true", help="list what would run; needs no GPU")
    parser.add_argument("--target", default="sm_90", help="the chip a dry run is for")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
