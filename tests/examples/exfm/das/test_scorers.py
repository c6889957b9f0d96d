"""Whatever goes wrong in a teacher costs scores, and is named; a snapshot of another size is another model."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from examples.exfm.counters import Counters
from examples.exfm.das.rows import joined
from examples.exfm.das.scorers import Batch, Local, Scorer, scored
from examples.exfm.das.snapshots import Snapshots
from examples.exfm.teacher import Teacher, described
from tests.examples.exfm.world import DRIFT, TINY, das, publish, teacher, through


@pytest.fixture
def folder(tmp_path):
    publish(tmp_path, [1])
    return tmp_path


class Mine:
    """A teacher of one's own: what it gives, or raises, is said when it is made."""

    def __init__(self, gives):
        self.gives = gives

    def score(self, version, ids, bag):
        return self.gives(len(ids))


@pytest.mark.parametrize(
    "gives, words",
    [
        (lambda n: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda n: (np.zeros(n - 1, np.float32), np.zeros((n - 1, 4), np.float16)), "logits and embeddings are"),
        (lambda n: (np.zeros(n, np.float32), np.zeros((n, 5), np.float16)), r"expected \(\(\d+,\), \(\d+, 4\)\)"),
    ],
)
def test_what_a_teacher_does_wrong_costs_scores_and_no_rows(folder, gives, words):
    service = das(folder, scorers=Local(Mine(gives)))
    rows = joined(through(service, DRIFT.events()))
    assert len(set(rows.id.tolist())) == 6 * 80 and not rows.scored.any()
    assert service.counters["scorer_failed"] == 6 * 80
    assert re.search(f"scorer_failed: .*{words}", service.counters.named[-1])


def test_a_teacher_of_ones_own_scores(folder):
    service = das(folder, scorers=Local(Mine(lambda n: (np.ones(n, np.float32), np.ones((n, 4), np.float16)))))
    rows = joined(through(service, DRIFT.events()))
    assert rows.scored.all() and (rows.logit == 1).all()


def test_a_snapshot_of_another_size_is_another_model(folder):
    scorer, snapshots = Scorer(folder), Snapshots(folder)
    torch.manual_seed(3)
    larger = Teacher(DRIFT.schema, replace(TINY, width=16)).eval()
    snapshots.publish(2, 10**9, 10**9, larger.state_dict(), described(DRIFT.schema, replace(TINY, width=16)))
    ids = np.ones((5, len(DRIFT.schema.fields)), np.int32)
    bag = np.ones((5, DRIFT.schema.places), np.int32)
    with torch.no_grad():
        for version, model in ((1, teacher(1)), (2, larger), (1, teacher(1))):
            logit, _ = scorer.score(version, ids, bag)
            assert np.array_equal(logit, model(torch.from_numpy(ids).long(), torch.from_numpy(bag).long())[0].numpy())


def test_a_snapshot_that_fails_half_way_leaves_nothing_to_score_by(folder):
    scorer = Scorer(folder)
    ids = np.ones((5, len(DRIFT.schema.fields)), np.int32)
    batch = Batch(0, 1, ids, np.ones((5, DRIFT.schema.places), np.int32))
    before = scored(scorer, batch)
    broken = {name: each[:1] if name == "head.0.weight" else each + 1 for name, each in teacher(2).state_dict().items()}
    Snapshots(folder).publish(2, 10**9, 10**9, broken, described(DRIFT.schema, TINY))
    assert "RuntimeError" in scored(scorer, replace(batch, version=2)).error
    after = scored(scorer, batch)  # the weights that were half overwritten are read again
    assert np.array_equal(after.logit, before.logit)


def test_what_is_counted_where_the_teacher_runs_goes_on_with_the_scores(folder):
    class Prepare:
        counters = Counters()

        def __call__(self, model):
            self.counters.add("plan_checked", words="once")
            return model

    service = das(folder, scorers=Local(Scorer(folder, Prepare())))
    through(service, DRIFT.events())
    assert service.counters["plan_checked"] == 1 and "plan_checked: once" in service.counters.named
    assert not Prepare.counters.counts


def test_a_snapshot_that_is_published_again_is_read_again(folder):
    scorer = Scorer(folder)
    ids, bag = np.ones((5, len(DRIFT.schema.fields)), np.int32), np.ones((5, DRIFT.schema.places), np.int32)
    before, _ = scorer.score(1, ids, bag)
    Snapshots(folder).publish(1, 0, 0, teacher(9).state_dict(), described(DRIFT.schema, TINY))
    after, _ = scorer.score(1, ids, bag)
    fresh, _ = Scorer(folder).score(1, ids, bag)
    assert not np.array_equal(before, after) and np.array_equal(after, fresh)
    Snapshots(folder, keep=0).rotate(-1)
    (folder / "index.json").unlink()
    assert np.array_equal(scorer.score(1, ids, bag)[0], after)  # what is gone since is still known


@pytest.mark.parametrize(
    "logit, embedding, counted, words",
    [
        (lambda n: torch.ones(n), lambda n: torch.ones(n, 4), "", ""),
        (lambda n: [1.0] * n, lambda n: [[1.0] * 4] * n, "", ""),
        (lambda n: torch.ones(n, requires_grad=True), lambda n: torch.ones(n, 4), "scorer_failed", "RuntimeError"),
        (lambda n: torch.ones(n, dtype=torch.bfloat16), lambda n: torch.ones(n, 4), "scorer_failed", "TypeError"),
        (lambda n: ["a"] * n, lambda n: torch.ones(n, 4), "scorer_failed", "ValueError"),
        (lambda n: np.full(n, 1e300), lambda n: np.ones((n, 4)), "score_not_finite", ""),
        (lambda n: np.ones(n), lambda n: np.full((n, 4), 1e9), "score_not_finite", ""),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_whatever_is_given_for_scores_is_scores_or_counted(folder, logit, embedding, counted, words):
    service = das(folder, scorers=Local(Mine(lambda n: (logit(n), embedding(n)))))
    rows = joined(through(service, DRIFT.events()))
    assert len(set(rows.id.tolist())) == 6 * 80 and rows.scored.all() == (not counted)
    assert not counted or service.counters[counted] == 6 * 80
    assert words in "".join(service.counters.named)
    assert np.isfinite(rows.logit).all() and np.isfinite(rows.embedding).all()
