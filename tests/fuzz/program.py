"""A random program as plain data, and how hypothesis draws one.

Nothing in it names a tensor: a step says what kind of part comes next, and its picks, small numbers, choose among what
fits where it stands. So any list of steps is a program, any number is a choice, and a failure shrinks by leaving steps
out and by making numbers smaller, where 0 is the plainest choice.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

PICKS = 8
"""Numbers a step has; those after them are 0."""


@dataclass(frozen=True)
class Write:
    """A write in place that lands behind line `at` of the part it belongs to."""

    at: int
    picks: bytes


@dataclass(frozen=True)
class Step:
    kind: str
    picks: bytes = b""
    writes: tuple[Write, ...] = ()


@dataclass(frozen=True)
class Program:
    """head: dtype, sizes, inputs, training and the like; see build.py."""

    head: bytes
    steps: tuple[Step, ...]


def programs(kinds: dict[str, int], most: int = 7) -> st.SearchStrategy[Program]:
    """Programs of at most so many steps. kinds: kind of step -> how often it is drawn, relative to the others."""
    weighted = [kind for kind, weight in kinds.items() for _ in range(weight)]
    picks = st.binary(min_size=PICKS, max_size=PICKS)
    write = st.builds(Write, at=st.integers(0, 6), picks=st.binary(min_size=5, max_size=5))
    writes = st.lists(write, max_size=2).map(tuple)
    step = st.builds(Step, kind=st.sampled_from(weighted), picks=picks, writes=writes)
    return st.builds(
        Program, head=st.binary(min_size=12, max_size=12), steps=st.lists(step, min_size=1, max_size=most).map(tuple)
    )
