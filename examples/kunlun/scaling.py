"""NE against FLOPs over sizes, each with and without CompSkip, with the log-linear fit of the scaling law.

    python examples/kunlun/scaling.py --json build/kunlun_scaling.json [--seeds 3] [--plot docs/img/kunlun_scaling.png]

Kunlun's law is NE(C) = NE_0 - eta * log(C / C_0); the ratio of two etas is the scaling efficiency of one over the
other. C is the forward's FLOPs of a request whose sequences have the test set's mean length, counted on the graph. What
the JSON file already holds is not trained again, so that a run can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it also runs as a plain script

from examples.kunlun import data, flops, train
from examples.kunlun.bench import stepper
from examples.kunlun.data import Histories
from examples.kunlun.sizes import SIZES, Size

COUNTED = 4  # requests that FLOPs are counted on


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse(argv)
    found = data.load()
    rows = (found.train[-2048:], found.test[:1024]) if options.quick else (found.train, found.test)
    points: dict[str, dict[str, object]] = {}
    if options.json and options.json.exists():
        points = json.loads(options.json.read_text())["points"]
    for name in options.sizes:
        for compskip in (False, True):
            settings = train.loka_options(compskip)
            point = points.setdefault(f"{name}, CompSkip" if compskip else name, {"compskip": compskip, "ne": []})
            if "gflops" not in point:
                point["gflops"] = forward_flops(found, SIZES[name], settings) / 1e9
            while len(point["ne"]) < options.seeds:
                torch.compiler.reset()
                point["ne"].append(train.run(found, *rows, SIZES[name], len(point["ne"]), settings)["ne"])
                print(f"{name}, {'with' if compskip else 'without'} CompSkip: {point}", flush=True)
                results = summary(points)
                if options.json:
                    options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    results = summary(points)
    for name, law in results["laws"].items():
        print(
            f"{name}: NE = {law['ne_0']:.4f} - {law['eta']:.5f} * log(C / {law['c_0']:.4f} GFLOP), "
            f"residual {law['residual']:.4f}"
        )
    if "efficiency" in results:
        print(f"scaling efficiency of CompSkip: {results['efficiency']:.2f}")
    if options.plot:
        plot(results, options.plot)
    return results


def forward_flops(found: Histories, size: Size, settings: dict[str, object]) -> float:
    """Of one request with sequences of the test set's mean length."""
    torch.compiler.reset()
    lengths = found.lengths(found.test, size.max_length).float()
    mean = round(float(lengths.mean()))
    batch = found.batch(found.test[:COUNTED], mean, pad_to=mean)
    model = train.kunlun(found, size).eval()
    return flops.of_graph(model, settings, stepper(batch, "inference")) / COUNTED


def summary(points: dict[str, dict[str, object]]) -> dict[str, object]:
    """The points, a law for the sizes without and one for those with CompSkip, and the ratio of their etas."""
    laws = {}
    for name, compskip in (("every layer in full", False), ("CompSkip", True)):
        these = [p for p in points.values() if p["compskip"] is compskip and p["ne"]]
        if len(these) >= 2:
            laws[name] = fit([p["gflops"] for p in these], [fmean(p["ne"]) for p in these])
    results: dict[str, object] = {"points": points, "laws": laws, "threads": torch.get_num_threads()}
    if len(laws) == 2 and laws["every layer in full"]["eta"]:
        results["efficiency"] = laws["CompSkip"]["eta"] / laws["every layer in full"]["eta"]
    return results


def fit(gflops: list[float], entropies: list[float]) -> dict[str, float]:
    """Least squares of NE(C) = ne_0 - eta * log(C / c_0), c_0 the smallest C; residual is the root mean square."""
    c, ne = torch.tensor(gflops, dtype=torch.float64), torch.tensor(entropies, dtype=torch.float64)
    design = torch.stack([torch.ones_like(c), -(c / c.min()).log()], dim=1)
    ne_0, eta = torch.linalg.lstsq(design, ne[:, None]).solution[:, 0].tolist()
    residual = (design @ torch.tensor([ne_0, eta], dtype=torch.float64) - ne).square().mean().sqrt()
    return {"ne_0": ne_0, "eta": eta, "c_0": float(c.min()), "residual": float(residual)}


def plot(results: dict[str, object], path: Path) -> None:
    """A mark for every trained model, the mean of its seeds, and both laws as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7, 5), layout="constrained")
    for (name, law), colour in zip(results["laws"].items(), ("tab:blue", "tab:orange"), strict=False):
        these = [p for p in results["points"].values() if p["compskip"] is (name == "CompSkip") and p["ne"]]
        for point in these:
            panel.scatter([point["gflops"]] * len(point["ne"]), point["ne"], s=10, color=colour, alpha=0.5)
        c = sorted(p["gflops"] for p in these)
        panel.plot(c, [fmean(p["ne"]) for p in sorted(these, key=lambda p: p["gflops"])], "o", color=colour, label=name)
        line = [law["ne_0"] - law["eta"] * float(torch.tensor(each / law["c_0"]).log()) for each in c]
        panel.plot(c, line, color=colour, linewidth=1)
    panel.set(
        xscale="log",
        xlabel="GFLOP of a request, forward (counted on the graph)",
        ylabel="NE on the ratings that came later (down is better)",
    )
    panel.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--seeds", type=int, default=1, help="trained models a point")
    parser.add_argument("--plot", type=Path, help="where to draw NE against FLOPs")
    parser.add_argument("--json", type=Path, help="where to write all figures, and to go on from")
    parser.add_argument("--quick", action="store_true", help="few ratings: a rehearsal, no result")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
