"""What the tests of DAS share: a small stream, teachers that are published, scorers that fail on demand."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from examples.exfm.das.scorers import Local, Scored, Scorer
from examples.exfm.das.service import Das, Settings
from examples.exfm.das.snapshots import Snapshots
from examples.exfm.stream.drift import START, Drift
from examples.exfm.teacher import SIZES, Teacher, described

HOUR = 3600
TINY = SIZES["tiny"]
DRIFT = Drift(hours=6, rate=80, users=60, items=30, new_users=3)


def teacher(seed=0, drift=DRIFT):
    torch.manual_seed(seed)
    model = Teacher(drift.schema, TINY).eval()
    for table in (model.table, model.bag):  # as if trained: examples differ
        torch.nn.init.normal_(table.weight)
    return model


def publish(folder, versions, drift=DRIFT, keep=8):
    """Snapshot v of teacher(v), published v hours before the stream begins, the highest version newest."""
    snapshots = Snapshots(folder, keep)
    for version in versions:
        until = START - (max(versions) - version) * HOUR
        snapshots.publish(version, until, until, teacher(version, drift).state_dict(), described(drift.schema, TINY))
    return snapshots


def das(folder, drift=DRIFT, scorers=None, **settings):
    scorers = Local(Scorer(folder)) if scorers is None else scorers
    return Das(drift.schema, scorers, Snapshots(folder).at, TINY.embedding, Settings(**settings))


def through(service, chunks):
    """All rows that come out."""
    found = []
    for events in chunks:
        service.push(events)
        found.append(service.release())
    return found


class Faulty:
    """Local scorers, except that batches of these numbers get lost, fail, or come back as something that is no number,
    and all come back `lag` collections late. Each collection that has nothing to give takes a moment, as waiting
    does."""

    def __init__(self, folder, lost=(), failing=(), wrong=(), lag=0, limit=4):
        self.local, self.limit = Local(Scorer(folder), limit), limit
        self.lost, self.failing, self.wrong, self.lag = set(lost), set(failing), set(wrong), lag
        self.under_way = deque()
        self.clock = 0

    def submit(self, batch):
        self.under_way.append((self.clock + self.lag, batch))

    def collect(self, seconds):
        self.clock += 1
        found = []
        for due, batch in list(self.under_way):
            if due >= self.clock or batch.number in self.lost:
                continue
            self.under_way.remove((due, batch))
            if batch.number in self.failing:
                found.append(Scored(batch.number, error="the scorer died"))
                continue
            self.local.submit(batch)
            [done] = self.local.collect(seconds)
            if batch.number in self.wrong:
                done.logit[::2] = np.nan
                done.logit[1] = np.inf
            found.append(done)
        return found

    @property
    def full(self):
        return len(self.under_way) >= self.limit

    def close(self):
        self.under_way.clear()
