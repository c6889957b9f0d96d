"""Events a second, and whether memory grows, over a million replayed events.

    python -m examples.exfm.bench_stream --work FOLDER [--events 1000000] [--json FILE] [--quick]

The log is written once, then replayed through one part more each time: the reading, DAS without a teacher, DAS with a
tiny teacher that scores. Events a second are of the wall and of this process's CPU time: on a machine that others use
the second is what it would do alone. Memory is what the process holds, looked at ten times on the way.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from examples.exfm.das.scorers import Local, Scorer
from examples.exfm.das.service import Das, Settings
from examples.exfm.das.snapshots import Snapshots
from examples.exfm.errors import in_one_line
from examples.exfm.stream import log
from examples.exfm.stream.drift import START, Drift
from examples.exfm.stream.events import Events
from examples.exfm.stream.origin import once
from examples.exfm.teacher import SIZES, Teacher, described

PER_EXAMPLE = 2.5
"""Events: a label, and an impression and a half."""
LOOKS = 10


@dataclass(frozen=True)
class Figure:
    """memory: MiB held at LOOKS moments; grew: from the third of them to the last."""

    events: int
    seconds: float
    cpu: float
    memory: list[float]

    @property
    def grew(self) -> float:
        return self.memory[-1] - self.memory[2]

    def __str__(self) -> str:
        return (
            f"{self.events / self.seconds:12,.0f} {self.events / self.cpu:14,.0f} {self.memory[2]:10,.0f} "
            f"{self.memory[-1]:8,.0f} {self.grew:+7.1f}"
        )


def main(argv: list[str] | None = None) -> dict[str, Figure]:
    options = parse(argv)
    torch.set_num_threads(1)
    drift, folder = stream(options.events, options.quick), options.work / "log"
    asked = {"data": "drift", "hours": drift.hours, "rate": drift.rate}
    if count := once(folder, asked, lambda: log.write(folder, drift.schema, drift.events())):
        print(f"{count:,} events in {folder}", flush=True)
    snapshots = Snapshots(options.work / "snapshots")
    size = SIZES["tiny"]
    teacher = Teacher(drift.schema, size)
    snapshots.publish(1, START - 1, START - 1, teacher.state_dict(), described(drift.schema, size))
    settings = Settings(window=27 * 3600)

    def service(known: Callable[[int], object]) -> Callable[[Events], object]:
        das = Das(drift.schema, Local(Scorer(snapshots.folder)), known, size.embedding, settings)
        return lambda events: (das.push(events), das.release())

    parts = {
        "reading": lambda events: None,
        "DAS": service(lambda time: None),
        "DAS, a tiny teacher": service(snapshots.at),
    }
    print(f"{'':20} {'events/s':>12} {'events/CPU s':>14} {'MiB at 3rd':>10} {'at end':>8} {'grew':>7}")
    found = {}
    for name, take in parts.items():
        found[name] = measured(log.Log(folder), take)
        print(f"{name:20} {found[name]}", flush=True)
    if options.json:
        body = {name: {**asdict(each), "grew": each.grew} for name, each in found.items()}
        options.json.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return found


def stream(events: int, quick: bool) -> Drift:
    rate = 50 if quick else 2000
    hours = max(round(events / PER_EXAMPLE / rate), 1)
    return Drift(hours=hours, rate=rate, users=20_000, items=2_000, new_users=100, new_items=5)


def measured(source: log.Log, take: Callable[[Events], object]) -> Figure:
    """One replay."""
    hours = source.hours
    memory: list[float] = []
    count, begun, worked = 0, time.perf_counter(), time.process_time()
    for events, position in source.chunks():
        take(events)
        count += len(events)
        while len(memory) < LOOKS and position["hour"] >= hours[0] + len(hours) * (len(memory) + 1) // LOOKS:
            memory.append(held())
    seconds, cpu = time.perf_counter() - begun, time.process_time() - worked
    memory += [held()] * (LOOKS - len(memory))
    return Figure(count, seconds, cpu, memory)


def held() -> float:
    """MiB of this process that lie in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="a few thousand events: a rehearsal, no result")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args(argv)
    options.events = 6000 if options.quick else options.events
    return options


if __name__ == "__main__":
    in_one_line("bench_stream", main)
