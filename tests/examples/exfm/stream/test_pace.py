"""Time passes at the speed asked for, and lost time is made up."""

from examples.exfm.stream.drift import Drift
from examples.exfm.stream.pace import pace


class Wall:
    def __init__(self, work):
        self.now, self.work, self.slept = 100.0, work, []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def replayed(speed, work):
    wall, chunks = Wall(work), [(events, {}) for events in Drift(hours=10, rate=200).events()][:10]
    seen = []
    for events, _ in pace(iter(chunks), speed, wall.clock, wall.sleep):
        seen.append((int(events.logged[-1] - chunks[0][0].logged[0]), wall.now - 100))
        wall.now += work
    return seen, wall


def test_the_stream_runs_at_its_speed():
    seen, _ = replayed(3600, 0.1)
    assert all(abs(wall - stream / 3600) < 1e-9 for stream, wall in seen)


def test_a_slow_reader_is_not_waited_for_twice():
    seen, wall = replayed(3600, 1.5)  # an hour a second, and a second and a half of work for each
    assert all(abs(passed - 1.5 * i) < 1.0 for i, (_, passed) in enumerate(seen)) and sum(wall.slept) < 1.0


def test_no_speed_is_no_waiting():
    assert not replayed(None, 0.0)[1].slept
