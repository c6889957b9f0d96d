"""python -m tests.fuzz N SEED [FROM]: N random programs, and what is wrong, each failure made small.

A seed's programs are numbered; those before FROM are left out, so that a run can be split.

The report counts programs, what was in them, how many graphs each pass rewrote, and what was not judged and why.
"""

from __future__ import annotations

import gc
import linecache
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field

from torch._subclasses import FakeTensorMode
from torch.fx import graph_module

from tests.fuzz.check import check
from tests.fuzz.grammar import KINDS, build
from tests.fuzz.judge import SHAKY, Verdict
from tests.fuzz.program import Program
from tests.fuzz.shrink import drawn, shrunk
from tests.fuzz.whole import whole

EVERY = 100
"""Programs between two reports."""
WHOLE = 200
"""One program of so many is compiled whole, by loka and by Inductor."""
COLLECT = 25
"""Programs between two collections of garbage: every traced graph is a class of its own, a subclass of nn.Module, and
each trace after it takes longer by all that are still there."""
SPREAD = 1_000_000
"""Programs of one seed that no other has."""


@dataclass
class Report:
    """kinds: pass and crash or wrong -> how often. shown: those of which a program was printed."""

    first: int
    began: float = field(default_factory=time.time)
    tally: Counter[str] = field(default_factory=Counter)
    fired: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    shown: set[str] = field(default_factory=set)

    def add(self, source: str, features: set[str], verdict: Verdict) -> None:
        words = [word.lower() for word in ("TRAINING", "DYNAMIC") if f"{word} = True" in source]
        self.tally.update(["programs", *features, *words])
        self.tally["graphs"] += verdict.graphs
        self.tally["judged"] += not verdict.unsaid
        self.fired.update(verdict.fired)
        self.notes.update(verdict.notes)
        if verdict.unsaid:
            self.notes[verdict.unsaid[:160]] += 1
        self.tally["failing"] += bool(verdict.wrong)
        self.kinds.update(kinds_of(verdict))

    def print(self) -> None:
        print(f"\nseed {self.first}, {time.time() - self.began:.0f} s, {time.process_time():.0f} s of a processor")
        for name in ("tally", "fired", "notes", "kinds"):
            found = sorted(getattr(self, name).items(), key=lambda item: -item[1])
            print(f"{name}: " + ", ".join(f"{each} {count}" for each, count in found))
        sys.stdout.flush()


def kinds_of(verdict: Verdict) -> list[str]:
    return [f"{name} {'crash' if reason.startswith('crash') else 'wrong'}" for name, reason in verdict.wrong.items()]


def judged(source: str) -> Verdict:
    try:
        return check(source)
    except Exception:
        return Verdict({"check": f"crash: {traceback.format_exc()[-1500:]}"})


def compiled_whole(source: str) -> str:
    try:
        return whole(source)
    except Exception:
        return f"crash: {traceback.format_exc()[-1500:]}"


def show(program: Program, kind: str) -> None:
    """Print the failure as small as it gets."""
    fails = lambda less: kind in kinds_of(judged(build(less)[0]))  # noqa: E731
    source, _ = build(program if kind.startswith("whole") else shrunk(program, fails, seconds=30))
    reason = next((why for name, why in judged(source).wrong.items() if kind.startswith(name)), "")
    print(f"\n## {kind}: {reason[:1200]}\n```python\n{source}```", flush=True)


def collect(done: int) -> None:
    """Let go of what PyTorch keeps of programs that are done: the source of every graph, and what operators gave."""
    linecache.clearcache()
    graph_module._loader.eval_cache.clear()
    if done % EVERY == 0:
        FakeTensorMode.cache_clear()
    gc.collect()
    if done == COLLECT:
        gc.freeze()  # what is loaded by now stays, and need not be looked through each time


def main(count: int, first: int = 0, skipped: int = 0) -> int:
    report = Report(first)
    gc.set_threshold(50_000, 20, 50)  # compiling makes many objects, and few in circles
    for number in range(first * SPREAD + skipped, first * SPREAD + skipped + count):
        program = drawn(number, KINDS)
        try:
            source, features = build(program)
        except Exception as error:
            report.kinds[f"the generator fails at {number}: {type(error).__name__}: {str(error)[:80]}"] += 1
            continue
        verdict = judged(source)
        if number % WHOLE == WHOLE - 1 and "random" not in features:  # of which Inductor draws others
            report.tally["compiled whole"] += 1
            if reason := compiled_whole(source):
                verdict.wrong["whole"] = reason
        report.add(source, features, verdict)
        if verdict.wrong or verdict.notes[SHAKY]:
            print(f"program {number}: {', '.join(kinds_of(verdict)) or SHAKY}")
        for kind in kinds_of(verdict):
            if kind not in report.shown:
                report.shown.add(kind)
                show(program, kind)
        if report.tally["programs"] % COLLECT == 0:
            collect(report.tally["programs"])
        if report.tally["programs"] % EVERY == 0:
            report.print()
    report.print()
    return report.tally["failing"]


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
