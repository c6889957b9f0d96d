"""Values of a space: whatever they are, a search finds them in a file as it does in memory."""

from __future__ import annotations

import warnings

import pytest

optuna = pytest.importorskip("optuna")
from examples.lattice.sketch.search import Between, Bounds, Cost, search  # noqa: E402
from examples.lattice.sketch.terms import distributions, told_of, values_of  # noqa: E402

optuna.logging.set_verbosity(optuna.logging.WARNING)
SPACE = {
    "hidden": ((16,), (64, 32), (8, 8, 8)),
    "mixed": (None, True, 2, 0.5, "[16]", [[1, 2], "a"]),
    "count": Between(1, 8, whole=True),
}


def tried(storage, trials: list[int]):
    seen = []

    def cost(values):
        seen.append(values)
        return Cost(float(sum(values["hidden"]) * values["count"]), 0.1)

    for count in trials:
        found = search(cost, lambda values, _: 0.5, SPACE, Bounds(0.0, 1.0), trials=count, storage=storage)
    return seen, found


def test_values_are_the_spaces_own_in_memory_and_in_a_file_that_goes_on(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # Optuna's, of values that it cannot keep
        memory, found = tried(None, [12])
        file, kept = tried(tmp_path / "trials.db", [3, 3, 12])
    assert memory == file and found == kept and len(memory) == 12
    for values in memory:
        assert values["hidden"] in SPACE["hidden"] and type(values["hidden"]) is tuple
        assert any(values["mixed"] is each for each in SPACE["mixed"])
    assert len({values["hidden"] for values in memory}) == 3


def test_plain_values_are_told_as_they_are():
    """Files of trials from before hold them so."""
    for value in (None, True, 1, 0.5, "a"):
        assert told_of(value) is value
    assert told_of((16, 8)) == "[16, 8]" and values_of({"a": ((16, 8), "x")}, {"a": "[16, 8]"}) == {"a": (16, 8)}
    assert values_of({"a": (1, True)}, {"a": True})["a"] is True


def test_values_that_a_file_cannot_hold_or_tell_apart_are_refused(tmp_path):
    space = {"kind": (print, len)}

    def go(storage):
        return search(lambda _: Cost(1.0, 0.1), lambda *_: 0.5, space, Bounds(0.0, 1.0), trials=1, storage=storage)

    with pytest.warns(UserWarning):
        assert go(None).values["kind"] in (print, len)
    with pytest.raises(ValueError, match=r"kind: <built-in function print> cannot be kept in .*trials.db"):
        go(tmp_path / "trials.db")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="expected values that JSON tells apart"):
        distributions({"a": ((16,), "[16]")})
