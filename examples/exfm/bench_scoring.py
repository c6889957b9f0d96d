"""What the teacher's scores cost in low precision: rows a second, and what students lose.

    python -m examples.exfm.bench_scoring --work FOLDER [--size large] [--days 45] [--seeds 5] [--h100] [--json FILE]
        [--rounds 15] [--cpu] [--history 32] [--quick]

Speed: the newest snapshot on rows of the log, eager, by Inductor and under loka's plan, in turns in one run, in CPU
seconds with --cpu. Students: the rows are scored twice, in float32 and under loka's plan, by the same snapshots, and
the same students learn from either. With --h100 the kernels that a GPU would run are modelled (`loka.preview`), and
called modelled.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import fmean

import torch

import loka_compile as loka
from examples.exfm.arms import Cell, Found, compare, difference
from examples.exfm.bench_arms import STUDENTS, said_so
from examples.exfm.das.lowered import HOW, Lowered, loss_rise
from examples.exfm.das.snapshots import Snapshots
from examples.exfm.errors import ExfmError, in_one_line
from examples.exfm.rescore import rescore
from examples.exfm.score import Plan, rows_of, score
from examples.exfm.stream import drift, log
from examples.exfm.stream.origin import once, record
from examples.exfm.teacher import SIZES, built
from examples.metrics import Race

MAX_NE_CHANGE = 2e-4
CELLS = (Cell("auxiliary"), Cell("adapter"))


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse(argv)
    folder = options.work / "log"
    if options.quick:
        stream = drift.Drift(hours=30)
        once(folder, {"data": "drift", "hours": 30}, lambda: log.write(folder, stream.schema, stream.events()))
    else:
        record(folder, "movielens", options.days, options.history, 0)
    source = log.Log(folder)
    works = {how: options.work / f"scored-{how}" for how in ("eager", "loka")}
    period = 6 * 3600 if options.quick else 24 * 3600
    score(source, Plan(works["eager"], SIZES[options.size], period=period, keep=10**6), each=said_so)
    lowered = Lowered("loka", options.batch, options={"min_speedup": 0.0} if options.quick else {})
    rescore(works["eager"], works["loka"], prepare=lowered)
    results: dict[str, object] = {
        "teacher": options.size,
        "checks": [vars(each) for each in lowered.checks],
        "counters": dict(lowered.counters.counts),
        "speed": speed(works["eager"], options, lowered),
        "students": students(works, source.schema, options),
    }
    _save(options.json, results)
    if options.h100:  # it takes longest
        results["h100, modelled"] = modelled(works["eager"], options.batch)
        _save(options.json, results)
    return results


def _save(path: Path | None, results: dict[str, object]) -> None:
    if path:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def speed(work: Path, options: argparse.Namespace, planned: Lowered) -> dict[str, dict[str, float]]:
    """Rows a second of each way to run the newest snapshot, and how far off its scores are. planned: by loka's plan;
    the model that it has compiled already is the one that all run."""
    batch = options.batch
    model, ids, bag = newest(work, batch)
    if planned.model is not None:
        planned.model.load_state_dict(model.state_dict())
        model = planned.model
    calls, found = {}, {}
    with torch.no_grad():
        exact, _ = model(ids, bag)
        for how in HOW:
            lowered = planned if how == "loka" else Lowered(how, batch)
            run = lowered(model)
            logit, _ = run(ids, bag)
            found[how] = {
                "loss_rise": loss_rise(exact, logit),
                "exact_instead": float(lowered.exact and how != "eager"),
            }
            calls[how] = lambda run=run: run(ids, bag)
        race = Race(calls, time.process_time if options.cpu else time.perf_counter)
        for _ in race.rounds(options.rounds):
            pass
    for how, of in found.items():
        of["rows_per_second"] = 1e3 * batch / race.ms(how)
        of["over_inductor"] = race.speedup(how, over="inductor")
        rows, over = of["rows_per_second"], of["over_inductor"]
        print(f"{how:10} {rows:12,.0f} rows/s, {over:.2f}x Inductor, {of['loss_rise']:.1e} KL/H")
    return found


def newest(work: Path, batch: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """The newest snapshot, and `batch` rows."""
    snapshots = Snapshots(work / "snapshots")
    known = snapshots.index()
    if not known:
        raise ExfmError(f"{work} has no snapshots: its stream ended before the teacher had published one")
    weights, said = snapshots.read(known[-1].version)
    model, _, _ = built(said)
    model.load_state_dict(weights)
    rows = next(rows for _, rows in rows_of(work) if len(rows))
    take = torch.arange(batch) % len(rows)
    return model, torch.from_numpy(rows.ids[take.numpy()]).long(), torch.from_numpy(rows.bag[take.numpy()]).long()


def students(works: dict[str, Path], schema: object, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """By vertical and arm, the relative change of NE with loka's scores against float32's."""
    base = STUDENTS["drift" if options.quick else "movielens"]
    found = {
        how: compare({0.0: work}, schema, base, CELLS, range(options.seeds), options.skip)
        for how, work in works.items()
    }
    said: dict[str, dict[str, float]] = {}
    for vertical in found["eager"]:
        for cell in CELLS:
            both: Found = {cell: found["loka"][vertical][cell], Cell("none"): found["eager"][vertical][cell]}
            change = difference(both, cell, Cell("none"))
            said[f"{vertical}, {cell.arm}"] = {"mean": change.mean, "error": change.error, "seeds": change.seeds}
            print(f"{vertical}, {cell.arm}: NE {change.mean:+.4%} ± {change.error:.4%} with scores under loka's plan")
    mean = fmean(each["mean"] for each in said.values())
    met = "met" if mean <= MAX_NE_CHANGE else "MISSED"
    print(f"mean over all: {mean:+.4%}, at most {MAX_NE_CHANGE:.2%} wanted: {met}")
    return said


def modelled(work: Path, batch: int) -> dict[str, float]:
    """Over Inductor in bf16 on an H100, as loka.preview models it."""
    model, ids, bag = newest(work, batch)
    found = loka.preview(model, (ids, bag), target="h100", sides=["inductor", "loka"])
    print(found)
    return {"speedup": found.speedup("loka", over="inductor")}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--size", choices=list(SIZES), default="large", help="of the teacher")
    parser.add_argument("--days", type=int, help="only the first so many of the stream")
    parser.add_argument("--history", type=int, default=0, help="events of a user's past that the teacher reads")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--cpu", action="store_true", help="time by CPU seconds: for a machine that others use too")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--skip", type=int, default=14, help="days at the start that do not count")
    parser.add_argument("--h100", action="store_true", help="model the scoring on an H100, too")
    parser.add_argument("--quick", action="store_true", help="a tiny stream and teacher: a rehearsal, no result")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args(argv)
    if options.quick:
        options.size, options.batch, options.rounds, options.seeds, options.skip = "tiny", 64, 2, 2, 0
    return options


if __name__ == "__main__":
    in_one_line("bench_scoring", main)
