"""python -m tests.fuzz N SEED: N random programs, and what is wrong."""

from __future__ import annotations

import sys
import time
from collections import Counter

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.check import check
from tests.fuzz.grammar import KINDS, build
from tests.fuzz.program import programs


def main(count: int, first: int) -> int:
    wrong: dict[str, tuple[str, str]] = {}
    tally: Counter[str] = Counter()
    fired: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    start = time.time()

    @seed(first)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(programs(KINDS))
    def judge(program):
        source, features = build(program)
        found, passes, unsaid = check(source)
        tally.update(["programs", *features, *(["training"] if "TRAINING = True" in source else [])])
        fired.update(passes)
        if unsaid:
            tally[unsaid.partition(":")[0]] += 1
        if found:
            tally["wrong"] += 1
        for name, reason in found.items():
            kinds[f"{name} {'crash' if reason.startswith('crash') else 'wrong'}"] += 1
            key = f"{name}: {'crash' if reason.startswith('crash') else 'wrong'}"
            if key not in wrong or len(source) < len(wrong[key][1]):
                wrong[key] = reason, source

    judge()
    print(
        f"seed {first}, {time.time() - start:.0f} s",
        dict(tally),
        "fired",
        dict(fired),
        "failures",
        dict(kinds),
        sep="\n",
    )
    for key, (reason, source) in wrong.items():
        print(f"\n## {key}: {reason}\n```python\n{source}```")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)))
