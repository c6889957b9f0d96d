"""The comparison, on a small stream where freshness is everything and where it is nothing."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from examples.lattice import delays
from examples.lattice.data import DataError
from examples.lattice.zipper import arms, bench, problems, schedules
from examples.lattice.zipper.arms import Problem, Settings, window_name
from examples.lattice.zipper.log import log_of
from examples.lattice.zipper.windows import Windows
from examples.metrics import auc

COUNT, WINDOWS = 3000, Windows((5.0, 20.0, 400.0))
DAY, DRAWN = 86_400.0, float("inf")
SETTINGS = Settings(chunk=32, batch=32, rate=3e-2)


def drifting(turns: float, end: float = DRAWN) -> Problem:
    """Items whose chance to convert turns around every `turns` seconds; conversions take up to 40 seconds."""
    generator = torch.Generator().manual_seed(0)
    times = torch.arange(COUNT).double()
    ids = torch.randint(1, 9, (COUNT, 1), generator=generator)
    phase = ((times // turns) % 2).bool()
    likes = (ids[:, 0] <= 4) ^ phase
    converts = torch.rand(COUNT, generator=generator) < 0.1 + 0.8 * likes
    waits = (torch.rand(COUNT, generator=generator) * 40).double().where(converts, float("inf"))
    log = log_of(times, torch.cat([ids, ids], dim=1), waits)
    return Problem("drifting", log, ids, torch.zeros(COUNT, 1, dtype=torch.int64), (9,), 1, WINDOWS, 900, end)


@pytest.fixture(scope="module")
def found():
    problem = drifting(1200.0)
    return {name: auc(logits, problem.labels()) for name, logits in arms.run(problem, SETTINGS, 0).items()}


def test_every_arm_predicts_every_row(found):
    windows = {"window 5 s", "window 20 s", "window 6.66667 min"}
    assert set(found) == windows | {
        "pretrained, then fixed",
        "vanilla",
        "FNW",
        "ES-DFM",
        "ensemble of windows",
        "Zipper, even shares",
        "Zipper",
        "Zipper, nested heads",
        "oracle (sees the future)",
    }


def test_where_the_world_turns_fresh_labels_win(found):
    """What holds in each of four seeds that were tried. Zipper's serving head learns from late labels alone, and what
    it gains over the longest window by itself (0.05 in the mean of seeds) is less than what a seed makes."""
    stale = found["window 6.66667 min"]
    for fresh in ("window 5 s", "window 20 s", "oracle (sees the future)", "vanilla", "FNW", "ES-DFM"):
        assert found[fresh] > stale + 0.05, fresh
    assert found["oracle (sees the future)"] > max(found["Zipper"], found["Zipper, nested heads"]) + 0.1
    assert found["oracle (sees the future)"] > found["pretrained, then fixed"] + 0.1


def test_pretraining_ends_where_the_stream_begins():
    problem = drifting(1200.0)
    assert 899.999 < problem.opening < 900 and problem.mature == 500  # second 500's window closes as the stream starts
    learned = []

    class Noted(arms.Stream):
        def __init__(self, *of):
            super().__init__(*of)
            loss = self.loss
            self.loss = lambda samples: learned.extend(samples.rows.tolist()) or loss(samples)

    original, arms.Stream = arms.Stream, Noted
    try:
        torch.manual_seed(0)
        first = arms._fresh(problem, 3)
        arms._test_then_train(problem, SETTINGS, first, arms.schedules.single(problem.log, 5.0, 0), 0)
    finally:
        arms.Stream = original
    assert learned == list(range(500, 500 + len(learned))) and len(learned) > 2400  # no row twice, none left out


def test_no_arm_learns_a_row_or_its_time_before_it_predicts_it(monkeypatch):
    """Fifty rows share a second, as purchases share a day: chunks end within seconds, and hold parts of two."""
    seconds, count = 24, 1200
    generator = torch.Generator().manual_seed(0)
    times = torch.arange(count).double().mul(seconds / count).floor()
    ids = torch.arange(count)[:, None]  # so that a prediction says which rows it is of
    delays = torch.randint(5, (count,), generator=generator).double().masked_fill(times % 3 == 0, float("inf"))
    windows = Windows((1.0, 2.0, 4.0))
    log = log_of(times, torch.cat([ids, ids], dim=1), delays)
    problem = Problem("tied", log, ids, torch.zeros_like(ids), (count,), 1, windows, 630, DRAWN)
    follow, steps = arms._follow, []

    def watched(problem, settings, streams, module, head):
        predicted = set(range(problem.start))

        def noted(samples, loss):
            assert set(samples.rows.tolist()) <= predicted
            assert float(samples.ready.max()) < float(times[len(predicted)])  # of the row that is predicted next
            return loss(samples)

        def saw(module, inputs, logits):
            if not torch.is_grad_enabled():
                predicted.update(inputs[0][:, 0].tolist())

        for stream in streams:
            stream.loss = partial(noted, loss=stream.loss)
        module.register_forward_hook(saw)
        logits = follow(problem, settings, streams, module, head)
        assert predicted == set(range(count))
        steps.append([stream.steps for stream in streams])
        return logits

    monkeypatch.setattr(arms, "_follow", watched)
    arms.run(problem, SETTINGS, 0)
    assert steps[0] == [0] and len(steps) == 11  # all that predict: the ensemble is made of three of them
    assert min(min(each) for each in steps[1:]) > 8


def test_rows_whose_labels_the_log_cuts_off_are_neither_judged_nor_learned():
    problem = drifting(1200.0, end=2000.0)
    assert problem.stop == 1601 and len(problem.labels()) == 701  # the window of second 1600 closes with the log
    assert {len(logits) for logits in arms.run(problem, SETTINGS, 0).values()} == {701}
    seen = schedules.future(problem.log, WINDOWS.longest, 2, problem.end)
    assert seen.rows.tolist() == list(range(1601))
    assert len(schedules.future(problem.log, WINDOWS.longest, 2)) == COUNT == drifting(1200.0).stop


def test_a_log_that_ends_before_any_window_does_has_nothing_to_judge():
    with pytest.raises(DataError, match=r"no row to judge: of 3000 rows 801.* starts with row 900: give a longer log"):
        drifting(1200.0, end=1200.0)


def test_a_model_that_had_nothing_to_be_pretrained_on_is_left_as_it_was():
    log = log_of(torch.arange(64).double(), torch.zeros(64, 2, dtype=torch.int64), torch.full((64,), 5.0).double())
    ids = torch.ones(64, 1, dtype=torch.int64)
    problem = Problem("short", log, ids, torch.zeros_like(ids), (9,), 1, WINDOWS, 32, DRAWN)
    assert problem.mature == 0
    assert all(bool(logits.isfinite().all()) for logits in arms.run(problem, SETTINGS, 0).values())


def test_names_of_windows():
    assert [window_name(seconds) for seconds in (5.0, 90.0, 5400.0, 604800.0)] == [
        "window 5 s",
        "window 1.5 min",
        "window 1.5 h",
        "window 7 d",
    ]


def test_cdnow_as_a_problem(tmp_path):
    path = tmp_path / "log.txt"
    lines = [
        f" {customer:05} 1997{month:02}{customer + 1:02} 1 {10 * month}.00"
        for customer in range(5)
        for month in (1, 2, 9)
    ]
    path.write_text("names\n" + "\n".join(lines))
    problem = problems.cdnow(bought=delays.read(path))
    assert len(problem.log) == 15 and problem.start == 7
    assert (problem.log.delays() <= problem.windows.seconds[1]).sum() == 0  # 31 days and more
    assert (problem.log.delays() <= problem.windows.longest).sum() == 5
    assert bool((problem.ids < torch.tensor(problem.cardinalities)).all())
    assert problem.end == 247 * DAY and problem.stop == 10  # to 5 September, of whose month none is judged
    assert problems.cdnow(rows=slice(0, 12), bought=delays.read(path)).end == problem.end  # the file's, not the part's


def criteo(path, rows: int = 80, slow: int = 864_000):
    """A click a day, every other converts after `slow` seconds."""
    rest = "\t".join("12345678abcdefghi")
    days = ((86_400 * day, 86_400 * day + slow if day % 2 else "") for day in range(rows))
    path.write_text("".join(f"{clicked}\t{converted}\t{rest}\n" for clicked, converted in days))
    return path


def test_criteos_log_ends_with_its_last_event(tmp_path):
    path = criteo(tmp_path / "data.txt")
    problem = problems.criteo_log(path)
    assert problem.end == 89 * DAY and problem.stop == 60  # clicks until day 79, the last conversion on day 89


def test_kept_figures_of_one_criteo_file_are_not_another_ones(tmp_path, monkeypatch):
    ran = []
    logits = {name: torch.zeros(1) for name in ("pretrained, then fixed", "vanilla", "Zipper", "Zipper, nested heads")}
    logits["oracle (sees the future)"] = torch.ones(1)
    monkeypatch.setattr(arms, "run", lambda problem, *_: ran.append(problem) or logits)
    monkeypatch.setattr(bench, "quality", lambda *_: {"auc": 0.5, "logloss": 0.5, "ne": 1.0})

    def figures(path):
        bench.main(["--criteo", str(path), "--seeds", "1", "--json", str(tmp_path / "r.json")])

    first, second = criteo(tmp_path / "data.txt"), criteo(tmp_path / "other.txt", slow=864_001)
    figures(first)
    figures(first)
    assert len(ran) == 1  # kept
    (tmp_path / "copy").mkdir()
    figures(criteo(tmp_path / "copy" / "data.txt"))  # the same file in another place
    assert len(ran) == 1
    with pytest.raises(DataError, match=r"holds figures of other settings.*'name': 'data.txt'.*'name': 'other.txt'"):
        figures(second)
    first.write_bytes(second.read_bytes())  # under the same name
    with pytest.raises(DataError, match="holds figures of other settings"):
        figures(first)
    with pytest.raises(DataError, match="is missing: Criteo's conversion log"):
        figures(tmp_path / "none.txt")
    assert len(ran) == 1


def test_what_is_chosen_before_the_stream_has_seen_nothing_of_it():
    problem = drifting(1200.0)
    before = problems.before_stream(problem)
    assert len(before.log) == 900 and before.end == problem.opening
    assert (before.start, before.stop) == (250, 500) == (problem.mature // 2, problem.mature)
    assert float(torch.cat([before.log.times, before.log.converted]).max()) < float(problem.log.times[problem.start])
    assert torch.equal(before.labels(), (problem.log.delays()[250:500] <= problem.windows.longest).float())


def test_delays_that_are_drawn_are_never_cut_off():
    problem = problems.movielens_with_delays(rows=slice(0, 500))
    assert problem.end == DRAWN and problem.stop == 500


def test_share_closed_and_wins():
    runs = {
        "pretrained, then fixed": [{"auc": 0.5, "logloss": 0.7}] * 2,
        "vanilla": [{"auc": 0.55, "logloss": 0.9}] * 2,
        "Zipper": [{"auc": 0.62, "logloss": 0.66}, {"auc": 0.64, "logloss": 0.64}],
        "Zipper, nested heads": [{"auc": 0.6, "logloss": 0.66}] * 2,
        "oracle (sees the future)": [{"auc": 0.7, "logloss": 0.6}] * 2,
    }
    found = bench.summary(runs)
    assert found["Zipper"]["auc closed from pretrained, then fixed"] == pytest.approx(0.65)
    assert found["Zipper"]["auc closed from vanilla"] == pytest.approx(0.08 / 0.15)
    assert found["Zipper"]["logloss closed from pretrained, then fixed"] == pytest.approx(0.5)
    assert found["vanilla"]["auc under Zipper"] == 2 and found["oracle (sees the future)"]["auc under Zipper"] == 0
    assert found["Zipper"]["logloss under Zipper, nested heads"] == 0 and found["Zipper"]["auc under Zipper"] == 0


@pytest.mark.slow
def test_the_bench_rehearses(tmp_path):
    options = ["--quick", "--seeds", "1", "--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")]
    bench.main(options)
    found = json.loads((tmp_path / "r.json").read_text())["more"]
    assert len(found["movielens"]["arms"]) == len(found["cdnow"]["arms"]) == 12 and (tmp_path / "r.png").exists()
