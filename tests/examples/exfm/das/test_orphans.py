"""Labels without their example are held for a while, and never more of them than said."""

from examples.exfm.das.orphans import Orphans


def test_a_label_waits_for_its_example():
    orphans = Orphans(2)
    assert [orphans.add(1, 1.0, 10), orphans.add(1, 0.0, 11), orphans.add(2, 0.0, 12)] == ["", "duplicate_label", ""]
    assert (orphans.take(1), orphans.take(1), orphans.take(3)) == (1.0, None, None)


def test_the_oldest_goes_when_there_are_too_many_or_when_its_time_is_up():
    orphans = Orphans(2)
    assert [orphans.add(id, 1.0, 10 * id) for id in (1, 2, 3)] == ["", "", "label_alone"]
    assert orphans.take(1) is None and orphans.expire(20) == 0 and orphans.expire(21) == 1
    assert orphans.take(2) is None and orphans.take(3) == 1.0


def test_what_is_held_goes_on():
    orphans, again = Orphans(3), Orphans(3)
    for id in (5, 2):
        orphans.add(id, 0.25, id)
    again.restore(orphans.arrays())
    assert list(again.known.items()) == [(5, (0.25, 5)), (2, (0.25, 2))]
