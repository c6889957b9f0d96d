"""A stream with drift that one can dial: new users and items every hour, tastes that turn, a base rate that swings.

What is true is known: a label is drawn from `probability`, so a model's loss can be held against the best there is. An
hour is drawn from the seed and its number alone, and only labels that are still due are held in memory, so a stream of
any length is written and read in constant memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from examples.exfm.stream.delays import Delays
from examples.exfm.stream.events import Events, Schema, concat, event, impressions, in_order, labels
from examples.exfm.stream.log import HOUR

START = 1_000_000 * HOUR  # in 2084: nobody takes it for real data
SEGMENTS, CATEGORIES, TAGS, MOST = 12, 16, 24, 3
FIELDS = ("user", "segment", "item", "category", "hour")


class Past:
    """What each user did, up to `history` events, newest first; users go by their numbers."""

    def __init__(self, history: int) -> None:
        self.history = history
        self.events: dict[int, list[tuple[int, int, float, int]]] = {}  # item, when, when told, label

    def before(
        self, ids: NDArray[np.int64], time: NDArray[np.int64], label: NDArray[np.int64], told: NDArray[np.float64]
    ) -> NDArray[np.int32]:
        """What stands in the examples' histories, in the order of time; they belong to the past from now on."""
        found = np.zeros((len(ids), self.history), np.int32)
        for row in range(len(ids) if self.history else 0):
            user, now = int(ids[row, 0]), int(time[row])
            own = self.events.get(user, [])
            earlier = [each for each in own if each[1] < now][: self.history]
            found[row, : len(earlier)] = [event(item, 1 + y if at < now else 0) for item, _, at, y in earlier]
            same_second = [each for each in own if each[1] == now]
            new = (int(ids[row, 2]), now, float(told[row]), int(label[row]))
            self.events[user] = [new, *same_second, *earlier]
        return found

    def forget(self, user: int) -> None:
        """Users of lower numbers are gone."""
        self.events = {number: own for number, own in self.events.items() if number >= user}


@dataclass(frozen=True)
class Drift:
    """The dials.

    hours, rate: examples an hour; users, items: how many are there at a time; new_users, new_items: how many of them an
    hour replaces; turn: radians a day by which tastes turn; swing: half the range of the base rate's logit over a week;
    overlap: share of a vertical's examples that the next vertical logs too; strength: how much tastes say; own: how
    much each user's own taste says, which shows in what the user did and in no other feature; history: how many events
    of a user's past are logged with an example.
    """

    hours: int = 48
    rate: int = 200
    users: int = 500
    items: int = 200
    new_users: int = 20
    new_items: int = 2
    turn: float = 0.3
    swing: float = 0.5
    overlap: float = 0.5
    strength: float = 1.5
    own: float = 0.0
    history: int = 0
    verticals: tuple[str, ...] = ("feed", "stories", "search")
    delays: Delays = field(default_factory=lambda: Delays(most=26 * HOUR))
    seed: int = 0

    @property
    def schema(self) -> Schema:
        users = self.users + self.new_users * self.hours
        items = self.items + self.new_items * self.hours
        cardinalities = (users + 1, SEGMENTS + 1, items + 1, CATEGORIES + 1, 25)
        return Schema(FIELDS, cardinalities, TAGS + 1, MOST, self.verticals, self.history)

    @cached_property
    def _truth(self) -> tuple[NDArray[np.float64], ...]:
        """Two tables of tastes that are turned into each other, what every user, item and tag adds, and the users' own
        tastes."""
        rng = np.random.default_rng([self.seed, 1])
        users, _, items, _, _ = self.schema.cardinalities
        tastes = rng.normal(size=(2, SEGMENTS + 1, CATEGORIES + 1))
        return (
            tastes[0],
            tastes[1],
            0.5 * rng.normal(size=users),
            0.7 * rng.normal(size=items),
            rng.normal(size=TAGS + 1),
            np.random.default_rng([self.seed, 4]).normal(size=(SEGMENTS, CATEGORIES + 1)),
        )

    def probability(
        self, ids: NDArray[np.int64], bag: NDArray[np.int64], time: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Of a positive label."""
        first, second, by_user, by_item, by_tag, own = self._truth
        days = (time - START) / (24 * HOUR)
        user, segment, item, category, _ = ids.T
        taste = (
            np.cos(self.turn * days) * first[segment, category] + np.sin(self.turn * days) * second[segment, category]
        )
        base = -0.8 + self.swing * np.sin(2 * np.pi * days / 7)
        known = (bag > 0).sum(1).clip(1)
        tags = np.where(bag > 0, by_tag[bag], 0).sum(1) / known
        mine = self.own * own[user // SEGMENTS % SEGMENTS, category]
        return 1 / (1 + np.exp(-(base + self.strength * taste + by_user[user] + by_item[item] + 0.5 * tags + mine)))

    def examples(self, hour: int) -> tuple[NDArray[np.int64], ...]:
        """id, time, ids, bag, label (0 or 1) and delay of the examples that begin in this hour."""
        rng = np.random.default_rng([self.seed, 2, hour])
        n = self.rate
        time = np.sort(rng.integers(0, HOUR, n)) + START + hour * HOUR
        user = 1 + hour * self.new_users + rng.integers(0, self.users, n)
        rank = np.minimum(rng.geometric(4 / self.items, n) - 1, self.items - 1)  # some are shown far more often
        item = 1 + hour * self.new_items + (rank * 7919 + 13 * hour) % self.items
        segment, category = 1 + user * 31 % SEGMENTS, 1 + item * 17 % CATEGORIES
        ids = np.stack([user, segment, item, category, 1 + (time // HOUR) % 24], 1)
        tags = 1 + (item[:, None] * np.array([3, 5, 11]) + np.array([1, 7, 2])) % TAGS
        bag = np.where(np.arange(MOST) <= item[:, None] % MOST, tags, 0)
        label = (rng.random(n) < self.probability(ids, bag, time)).astype(np.int64)
        return hour * n + np.arange(n), time, ids, bag, label, self.delays.draw(rng, n)

    def impressions(self, hour: int) -> Events:
        """What the verticals log in this hour: an example belongs to one by its category, and to the next by chance."""
        id, time, ids, bag, _, _ = self.examples(hour)
        rng = np.random.default_rng([self.seed, 3, hour])
        count = len(self.verticals)
        first, again = ids[:, 3] % count, rng.random(len(id)) < self.overlap * (count > 1)
        own = impressions(ids, bag, id=id, time=time, vertical=first)
        late = impressions(ids, bag, id=id, time=time, vertical=(first + 1) % count).take(again)
        return in_order([own, late])

    def events(self) -> Iterator[Events]:
        """Everything in the order of the log, an hour at a time, until the last label has come."""
        schema, due, past = self.schema, [], Past(self.history)
        hour = 0
        while hour < self.hours or due:
            begun = []
            if hour < self.hours:
                id, time, ids, _, label, delay = self.examples(hour)
                told = labels(schema, id=id, time=time + delay, label=label).take(delay >= 0)
                due.append(told)
                before = past.before(ids, time, label, np.where(delay < 0, np.inf, time + delay))
                past.forget(1 + hour * self.new_users)
                shown = self.impressions(hour)
                begun.append(replace(shown, bag=np.concatenate([shown.bag, before[shown.id - id[0]]], axis=1)))
            end = START + (hour + 1) * HOUR
            begun += [each.take(each.logged < end) for each in due]
            due = [left for each in due if len(left := each.take(each.logged >= end))]
            if begun and len(whole := concat(begun)):
                yield in_order([whole])
            hour += 1
