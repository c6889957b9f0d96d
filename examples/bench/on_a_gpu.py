"""Everything that loka says of GPUs, run on one: numerics, kernels, whole models, and how far the preview was off.

    python examples/bench/on_a_gpu.py [--out gpu.json] [--minutes 6] [--parts numerics kernels models preview]
    python examples/bench/on_a_gpu.py --dry-run          on a machine without a GPU: all but the GPU

Four parts, each in a process of its own, so that a kernel that breaks the CUDA context takes only its part along:

    numerics   every Triton kernel against float64 (gpu_numerics.py)
    kernels    bench_kernels.py: measured next to modelled, `_scaled_mm`, Inductor and what is installed
    models     Wukong, DLRM and DCNv2: eager, Inductor, loka; inference and training (gpu_models.py)
    preview    an MLP and DLRM: every kernel's modelled time beside its measured one

A part stops when its share of the minutes is used up, and says what it left out. Nothing is downloaded or installed,
not even loka: torch with CUDA, triton, sympy, networkx, numpy, safetensors and rich are enough. `--out` has every
figure, with the device's name.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that it also runs as a plain script

SHARES = {"numerics": 0.2, "kernels": 0.3, "models": 0.3, "preview": 0.2}
"""Of the minutes, by part."""
Result = dict[str, Any]


def main(argv: list[str] | None = None) -> Result:
    """Runs the parts one after the other, prints their tables and returns what `--out` has."""
    options = parse(argv)
    if options.part:
        return alone(options.part, options)
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit("on_a_gpu: there is no GPU here; --dry-run does all but the GPU")
    console = Console(width=None if sys.stdout.isatty() else 160)
    device = "none, a dry run" if options.dry_run else torch.cuda.get_device_name()
    body: Result = {"device": device, "torch": torch.__version__, "cuda": torch.version.cuda, "parts": {}}
    console.print(f"{device}, torch {torch.__version__}")
    for name in options.parts:
        started = time.perf_counter()
        found = apart(name, options, 60 * options.minutes * SHARES[name])
        found["seconds"] = time.perf_counter() - started
        body["parts"][name] = found
        show(name, found, console)
        if options.out:
            options.out.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return body


# ---------------------------------------------------------------- a part, in a process of its own


def apart(name: str, options: argparse.Namespace, seconds: float) -> Result:
    """What the part wrote last, also where its process died or was stopped at three times its share."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "part.json"
        command = [sys.executable, str(Path(__file__).resolve()), "--part", name, "--out", str(out)]
        command += ["--seconds", str(seconds), *["--dry-run"] * options.dry_run]
        environment = os.environ | ({} if installed() else {"PYTHONPATH": str(laid_out(Path(folder)))})
        ended = ""
        try:
            done = subprocess.run(
                command, cwd=ROOT, timeout=3 * seconds, capture_output=True, text=True, env=environment
            )
            if done.returncode:
                ended = f"its process ended with {done.returncode}: {' | '.join(done.stderr.strip().splitlines()[-3:])}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {3 * seconds:.0f} s"
        found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"rows": [], "left": []}
    return found | ({"ended": ended} if ended else {})


def installed() -> bool:
    return any(each.name == "loka" for each in metadata.entry_points(group="torch_dynamo_backends"))


def laid_out(folder: Path) -> Path:
    """A folder for PYTHONPATH in which this checkout looks installed: links to its packages, and its entry points."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    name, version = setup["metadata"]["name"], setup["metadata"]["version"]
    site = folder / "site"
    package, info = site / "loka_compile", site / f"{name.replace('-', '_')}-{version}.dist-info"
    for made in (package, info):
        made.mkdir(parents=True)
    for each in [*(ROOT / "loka_compile").iterdir(), ROOT / "passes", ROOT / "kernels"]:
        (package / each.name).symlink_to(each)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    groups = setup["options.entry_points"].items()
    entries = "\n".join(f"[{group}]{lines}\n" for group, lines in groups)
    (info / "entry_points.txt").write_text(entries, encoding="utf-8")
    return site


def alone(name: str, options: argparse.Namespace) -> Result:
    """One part here: row after row, each written out as soon as it is there."""
    rows: list[Result] = []
    found: Result = {"rows": rows, "left": []}
    started = time.perf_counter()
    for key, work in PARTS[name](options.dry_run).items():
        if time.perf_counter() - started > options.seconds:
            found["left"].append(key)
            continue
        try:
            rows.append({"name": key} | work())
        except Exception as error:  # a row that fails is a row
            rows.append({"name": key, "failed": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"})
        options.out.write_text(json.dumps(found), encoding="utf-8")
    options.out.write_text(json.dumps(found), encoding="utf-8")
    return found


def numerics(dry: bool) -> dict[str, Callable[[], Result]]:
    from examples.bench import gpu_numerics

    device = "cpu" if dry else "cuda"

    def work(case: gpu_numerics.Case) -> Result:
        torch.manual_seed(0)
        shares = {output.name: output.share for output in case(device)}
        return {"shares": shares, "right": all(share <= 1 for share in shares.values())}

    return {name: lambda case=case: work(case) for name, case in gpu_numerics.cases().items()}


def kernels(dry: bool) -> dict[str, Callable[[], Result]]:
    """The specimens, one of each kernel's module in turn, so that a short run has some of all."""
    from examples import bench_kernels as bench

    [arch] = bench.chips.arch_of("sm_90" if dry else bench.arch_here())
    by_module = specimens_by_module(arch)
    longest = max(map(len, by_module.values()))
    rounds = 0 if dry else 15
    turns = [(m, each[i]) for i in range(longest) for m, each in by_module.items() if i < len(each)]

    return {f"{m}: {s.name}": lambda m=m, s=s: vars(bench.result_of(m, s, arch, rounds)) for m, s in turns}


def specimens_by_module(arch: str) -> dict[str, list[Any]]:
    from examples import bench_kernels as bench

    found: dict[str, list[Any]] = {}
    for module, specimen in bench.kernel_list.specimens(arch):
        found.setdefault(module, []).append(specimen)
    return found


def models(dry: bool) -> dict[str, Callable[[], Result]]:
    from examples import bench_kernels as bench
    from examples.bench import gpu_models

    def work(name: str, training: bool) -> Result:
        if not dry:
            return gpu_models.run(name, training, bench.timed, rounds=30)
        model, inputs = gpu_models.made(name, 32, "cpu")
        out = gpu_models.step(model.train(training), model, inputs, training)
        return {"model": name, "training": training, "batch": 32, "finite": bool(out.isfinite().all())}

    phases = {"inference": False, "training": True}
    return {
        f"{name}, {phase}": lambda name=name, training=training: work(name, training)
        for phase, training in phases.items()
        for name in gpu_models.MODELS
    }


def preview(dry: bool) -> dict[str, Callable[[], Result]]:
    """Modelled against measured; a dry run models an MLP for an H100."""
    import loka_compile as loka
    from examples.bench import gpu_models
    from examples.models.blocks import mlp_stack

    def work(name: str) -> Result:
        if name == "mlp":
            batch = 512 if dry else 65536
            model, inputs = mlp_stack().to(torch.bfloat16), (torch.randn(batch, 512, dtype=torch.bfloat16),)
        else:
            model, inputs = gpu_models.made(name, gpu_models.BATCH, "cpu")
        target = "h100" if dry else target_here()
        found = loka.preview(model.eval(), inputs, target, sides=("inductor", "loka"), measure=not dry)
        return {"target": target, "preview": found.to_json()}

    return {name: lambda name=name: work(name) for name in (["mlp"] if dry else ["mlp", "dlrm"])}


def target_here() -> str:
    """The preview's name for this GPU, such as h200; loka.preview says which it knows."""
    name = torch.cuda.get_device_name().lower()
    found = re.search(r"[bh]\d00|mi3\d\dx|l40s|rtx\s?\w+", name)
    return found[0] if found else name


PARTS: dict[str, Callable[[bool], dict[str, Callable[[], Result]]]] = {
    "numerics": numerics,
    "kernels": kernels,
    "models": models,
    "preview": preview,
}


# ---------------------------------------------------------------- tables


def show(name: str, found: Result, console: Console) -> None:
    table = Table("row", "result", title=f"{name}, {found['seconds']:.0f} s")
    for row in found["rows"]:
        table.add_row(row["name"], f"[red]{row['failed']}[/]" if "failed" in row else told(name, row))
    console.print(table)
    if found["left"]:
        console.print(f"{name}: time was up before {len(found['left'])} more: {', '.join(found['left'][:5])}, ...")
    if "ended" in found:
        console.print(f"[red]{name}: {found['ended']}[/]")


def told(part: str, row: Result) -> str:
    """One row's figures in a line."""
    if part == "numerics":
        mark = "" if row["right"] else "[red]WRONG[/] "
        return mark + ", ".join(f"{key} {share:.2f} of what is allowed" for key, share in row["shares"].items())
    if part == "kernels":
        modelled = f"modelled {row['modelled_us']:.1f} µs" if row["modelled_us"] else "not modelled"
        return ", ".join([modelled, *(f"{key} {us:.1f}" for key, us in row["us"].items())])
    if part == "models" and "us" in row:
        base = row["us"].get("inductor", float("nan"))
        times = [f"{key} {us:.0f} µs ({base / us:.2f}x)" for key, us in row["us"].items()]
        errors = [f"{key} error {error:.2%}" for key, error in row["error"].items()]
        return ", ".join([*times, *errors, *(f"{key} FAILED: {why}" for key, why in row["failed"].items())])
    if part == "models":
        return f"batch {row['batch']}, output {'finite' if row['finite'] else 'NOT FINITE'}"
    lines = []
    for side in row["preview"]["sides"]:
        modelled, measured = side["totals"]["modelled_us"], side["totals"].get("measured_us")
        beside = f", measured {measured:.1f} ({modelled / measured - 1:+.0%})" if measured else ""
        lines.append(f"{side['name']}: modelled {modelled:.1f} µs{beside}")
    return "; ".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--out", type=Path, help="where to write all figures, as JSON")
    parser.add_argument("--dry-run", action="store_true", help="all but the GPU")
    parser.add_argument("--part", choices=SHARES, help=argparse.SUPPRESS)  # what a process of its own is given
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
