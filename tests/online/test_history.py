"""What a session remembers of itself, bounded."""

from loka_compile.online.history import MOST, History


def test_events_and_sightings_in_order():
    history = History()
    history.note(0, "planned", "2 of 3 sites lowered")
    history.saw(100, "a#0:output", 0.01)
    history.saw(200, "a#0:output", 0.3)
    history.note(200, "demoted", "a#0:output: MERE 0.3, budget 0.2")
    assert history.as_dict() == {
        "events": [[0, "planned", "2 of 3 sites lowered"], [200, "demoted", "a#0:output: MERE 0.3, budget 0.2"]],
        "seen": {"a#0:output": [[100, 0.01], [200, 0.3]]},
    }


def test_only_the_latest_are_kept():
    history = History()
    for calls in range(3 * MOST):
        history.note(calls, "grown", "")
        history.saw(calls, "a", 0.1)
    kept = history.as_dict()
    assert (
        [event[0] for event in kept["events"]]
        == [each[0] for each in kept["seen"]["a"]]
        == list(range(2 * MOST, 3 * MOST))
    )
