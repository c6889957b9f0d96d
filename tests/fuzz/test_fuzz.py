"""Random programs, and those kept because they once failed, come out of every pass as they went in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.check import check
from tests.fuzz.grammar import KINDS, build
from tests.fuzz.program import programs

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "kept").glob("*.py")), ids=lambda path: path.stem)
def test_kept(path):
    verdict = check(path.read_text())
    assert not verdict.unsaid
    assert not verdict.wrong


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(programs(KINDS))
def test_random_programs(program):
    source, _ = build(program)
    verdict = check(source)
    assert not verdict.wrong, f"{verdict.wrong}\n{source}"
