"""The matrix of ways to use torch.compile: eager's result within the budget, or Inductor's with the reason in explain;
no crash where Inductor runs, and no other number of Dynamo's graphs (matrix.py)."""

from __future__ import annotations

import pytest

from tests.online import ranks
from tests.online.matrix import CELLS, table

IN_SHORT = {
    ("method", "training"),
    ("two instances", "eager_on_recompile"),
    ("weights copied", "checkpoint"),
    ("weights assigned", "recompile limit 1"),
    ("module", "unbacked"),
    ("module", "DDP, 2 processes"),
}
"""Some rows, and the columns that differ most; the whole matrix is slow."""


@pytest.fixture(scope="session")
def found(request):
    """The cells that this run asks for, by one start of processes for all of a kind."""
    wanted = [item.callspec.params["where"] for item in request.session.items if item.originalname == "test_a_cell"]
    found = {(each.row, each.column): each for each in ranks.cells(wanted)}
    print(table([found[where] for where in wanted]))
    return found


@pytest.mark.parametrize(
    "where",
    [pytest.param(each, id=" - ".join(each), marks=[] if each in IN_SHORT else pytest.mark.slow) for each in CELLS],
)
def test_a_cell(where, found):
    assert not found[where].wrong
