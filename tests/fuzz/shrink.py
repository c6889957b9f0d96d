"""A smaller program that fails in the same way: without steps, without writes, with plainer choices."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.fuzz.program import PICKS, Program, Step, Write


def drawn(number: int, kinds: dict[str, int], most: int = 7) -> Program:
    """The random program of this number."""
    rng = random.Random(number)
    chosen = rng.choices(list(kinds), list(kinds.values()), k=rng.randint(1, most))
    write = lambda: Write(rng.randint(0, 6), rng.randbytes(5))  # noqa: E731
    return Program(
        rng.randbytes(12),
        tuple(
            Step(kind, rng.randbytes(PICKS), tuple(write() for _ in range(max(0, rng.randint(-2, 2)))))
            for kind in chosen
        ),
    )


def shrunk(program: Program, fails: Callable[[Program], bool], seconds: float = 60) -> Program:
    """The smallest that still fails, as far as the time goes."""
    until, changed = time.monotonic() + seconds, True
    while changed and time.monotonic() < until:
        changed = False
        for less in _smaller(program):
            if time.monotonic() > until:
                break
            if fails(less):
                program, changed = less, True
                break
    return program


def _smaller(program: Program) -> Iterator[Program]:
    steps = program.steps
    for at in reversed(range(len(steps))):
        if len(steps) > 1:
            yield replace(program, steps=steps[:at] + steps[at + 1 :])
    for at, step in enumerate(steps):
        for place in range(len(step.writes)):
            less = replace(step, writes=step.writes[:place] + step.writes[place + 1 :])
            yield replace(program, steps=(*steps[:at], less, *steps[at + 1 :]))
    for head in _plainer(program.head):
        yield replace(program, head=head)
    for at, step in enumerate(steps):
        for picks in _plainer(step.picks):
            yield replace(program, steps=(*steps[:at], replace(step, picks=picks), *steps[at + 1 :]))


def _plainer(picks: bytes) -> Iterator[bytes]:
    if any(picks):
        yield bytes(len(picks))
    for at, each in enumerate(picks):
        if each:
            yield picks[:at] + b"\0" + picks[at + 1 :]
