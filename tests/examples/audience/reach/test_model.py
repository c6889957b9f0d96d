"""What the whole population says of a conjunction: exact about the cover, right elsewhere where the graph is."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from examples.audience.data import parsed
from examples.audience.reach import store
from examples.audience.reach.build import build, refresh
from examples.audience.reach.columns import Columns, encoded
from examples.audience.reach.counters import Local
from examples.audience.reach.design import counted, drawn_trials
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.formula import conjunction, of_trial
from examples.audience.reach.model import Model, fitted
from examples.audience.reach.query import And, Everybody, In, Not, Or, Range
from examples.audience.reach.schema import AudienceError

CHAIN = """
variable a { type discrete [ 3 ] { x, y, z }; }
variable b { type discrete [ 4 ] { p, q, r, s }; }
variable c { type discrete [ 2 ] { yes, no }; }
variable d { type discrete [ 3 ] { u, v, w }; }
variable e { type discrete [ 2 ] { on, off }; }
probability ( a ) { table 0.7, 0.25, 0.05; }
probability ( b | a ) { (x) 0.7, 0.2, 0.08, 0.02; (y) 0.1, 0.6, 0.2, 0.1; (z) 0.1, 0.1, 0.2, 0.6; }
probability ( c | b ) { (p) 0.05, 0.95; (q) 0.3, 0.7; (r) 0.6, 0.4; (s) 0.9, 0.1; }
probability ( d | b ) { (p) 0.8, 0.15, 0.05; (q) 0.3, 0.6, 0.1; (r) 0.1, 0.3, 0.6; (s) 0.05, 0.15, 0.8; }
probability ( e | d ) { (u) 0.02, 0.98; (v) 0.3, 0.7; (w) 0.7, 0.3; }
"""
ROWS = 60_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    network = parsed("chain", CHAIN)
    paths = network.write(folder / "population", ROWS, chunk=25_000)
    build(paths, Columns(tuple(network.values)), folder / "s", 1500)
    estimator = Estimator(Local(folder / "s"))
    whole = {name: np.concatenate([pq.read_table(p)[name].to_numpy() for p in paths]) for name in network.values}
    return estimator, whole, paths, folder


def there(whole, **wanted):
    return np.all([np.isin(whole[name], values) for name, values in wanted.items()], axis=0).sum()


def query(**wanted):
    return And(tuple(In(name, tuple(values)) for name, values in wanted.items()))


def test_what_is_asked_of_the_cover_alone_is_exact(made):
    estimator, whole, _, _ = made
    cover = estimator.manifest.cover
    assert "b" in cover
    wanted = {name: [estimator.schema.feature(name).values[0]] for name in cover}
    found = estimator.reach(Question(query(**wanted)))
    assert found.value == found.low == found.high == there(whole, **wanted)


def test_rare_audiences_are_within_their_interval_and_nearer_than_by_the_sample_alone(made):
    estimator, whole, paths, _ = made
    schema = estimator.schema
    codes = {name: encoded(pq.read_table(paths[0]), schema)[name] for name in schema.names}
    model, errors, inside = estimator.counters.model, [], []
    for trial in drawn_trials(codes, estimator.manifest.design, 900, seed=5):
        values = {name: [schema.feature(name).values[code] for code in own] for name, own in trial}
        truth = there(whole, **values)
        if not 6 <= truth < ROWS // 100:
            continue
        found = estimator.reach(Question(query(**values)))
        inside.append(found.low - 1e-6 <= truth <= found.high + 1e-6)
        errors.append((found.value - truth) / truth)
        predicted = model.expected(of_trial(trial)).cells[-1]
        assert predicted == pytest.approx(truth, abs=6 * np.sqrt(truth) + 0.3 * truth)
    assert len(errors) > 15 and np.mean(inside) > 0.8
    uniform = np.sqrt(ROWS / 1500 / (ROWS / 1000))  # of an audience of a thousandth
    assert np.sqrt(np.mean(np.square(errors))) < 0.5 * uniform


def test_trials_are_counted_as_the_rows_say(made):
    _, whole, paths, folder = made
    design = store.load(folder / "s").design
    codes = [encoded(pq.read_table(path), design.schema) for path in paths]
    found = sum(counted(design.trials, each) for each in codes)
    for trial, count in list(zip(design.trials, found.tolist(), strict=True))[:40]:
        values = {name: [design.schema.feature(name).values[code] for code in own] for name, own in trial}
        assert count == there(whole, **values)


def test_what_the_graph_expects_is_the_sum_over_all_strata(made):
    """Strata are joined where a question does not tell them apart; one by one they say the same."""
    estimator, _, paths, _ = made
    model, design = estimator.counters.model, estimator.manifest.design
    codes = {name: encoded(pq.read_table(paths[0]), design.schema)[name] for name in design.schema.names}
    for trial in drawn_trials(codes, design, 30, seed=9):
        total = 0.0
        for stratum, rows in zip(model.strata.tolist(), model.counts.tolist(), strict=True):
            own = dict(zip(design.cover, stratum, strict=True))
            for name, wanted in trial:
                if name in own:
                    rows *= own[name] in wanted
                    continue
                table = model.tables[*design.given[name], name][tuple(own[each] for each in design.given[name])]
                rows *= table[list(wanted)].sum() / max(table.sum(), 1)
            total += rows
        assert model.prior(of_trial(trial))[-1] == pytest.approx(total)


def test_a_graph_that_lacks_an_edge_is_found_out(made):
    """The model is tried on counts of the whole population: where it is wrong, it weighs little."""
    estimator, _, paths, _ = made
    model, design = estimator.counters.model, estimator.manifest.design
    bare = replace(design, given=dict.fromkeys(design.given, ()), margins=())
    tables = {
        (name,): next(t for names, t in model.tables.items() if names[-1] == name).reshape(-1, size).sum(0)
        for name, size in ((name, places[-1]) for (name,), places in bare.tables().items())
    }
    codes = [encoded(pq.read_table(path), design.schema) for path in paths]
    truth = sum(counted(design.trials, each) for each in codes)
    wrong = Model(bare, model.strata, model.counts, tables)
    found = fitted(wrong, [wrong.expected(of_trial(trial)) for trial in design.trials], truth)
    assert found.errors[1] > 3 * model.errors[1]


def _values(schema, trial):
    return {name: [schema.feature(name).values[code] for code in own] for name, own in trial}


def test_what_is_no_conjunction_is_left_to_the_sample(made):
    schema = made[0].schema
    in_a, in_b = In("a", ("x",)), In("b", ("p", "q"))
    assert conjunction(And((in_a, And((in_b, Not(In("b", ("q",))))))), schema) == (("a", (0,)), ("b", (0,)))
    assert conjunction(And((in_a, In("a", ("y",)))), schema) == (("a", ()),)
    for other in (Or((in_a, in_b)), Not(And((in_a, in_b))), Range("a", 1), Everybody()):
        assert conjunction(other, schema) is None


def test_a_refresh_knows_today(made):
    _, whole, paths, folder = made
    build(paths, Columns(tuple(whole)), folder / "again", 800)
    refresh(folder / "again", paths[:2])
    estimator = Estimator(Local(folder / "again"))
    wanted = {name: [estimator.schema.feature(name).values[0]] for name in estimator.manifest.cover}
    today = {name: column[:50_000] for name, column in whole.items()}
    assert estimator.reach(Question(query(**wanted))).value == there(today, **wanted)


def test_a_model_that_is_broken_is_refused(made):
    _, whole, paths, folder = made
    build(paths[:1], Columns(tuple(whole)), folder / "broken", 100)
    (folder / "broken" / "model.npz").write_bytes(b"PK no")
    with pytest.raises(AudienceError, match=r"model.npz is missing, or not what the manifest says"):
        Local(folder / "broken")
