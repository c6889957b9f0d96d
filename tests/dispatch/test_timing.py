"""Measured times: positive, measured once, remembered on disk, and never in the way."""

from __future__ import annotations

import json
import os

import pytest
import sympy
import torch

from loka_compile import compat
from loka_compile.dispatch import kept_times, steady, timing
from loka_compile.dispatch.candidates import fit
from loka_compile.dispatch.cost import Asked, Cost
from loka_compile.dispatch.loops import cast
from loka_compile.spec.decision import Candidate
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Site
from loka_compile.spec.sizes import Sizes
from loka_compile.spec.target import TARGETS

SIZES = Sizes(1, 64, 48, 32)


def site(sizes=SIZES, dtype=torch.float32, static_rhs=True):
    numbers = map(sympy.Integer, (sizes.batch, sizes.M, sizes.N, sizes.K))
    return Site("fc#0:output", "mm", "output", *numbers, dtype, static_rhs=static_rhs)


def asked(site, sizes, *candidates):
    return Asked(site, sizes, [fit(candidate, site, TARGETS["cpu"]) for candidate in candidates])


def cost(site, sizes, recipe, provider, margin=1e-9):
    """What a recipe costs that has to be `margin` times as fast as the GEMM as it is."""
    candidate = Candidate(recipe.name, provider)
    (times,) = timing.measured([asked(site, sizes, candidate)], margin)
    return times.costs[candidate]


def recipe_us(*args):
    return cost(*args).alone_us


def forget():
    kept_times._file.cache_clear()
    kept_times.times.cache_clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and kernels that are run two times instead of fifty milliseconds."""
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path / "loka"))
    monkeypatch.setattr(steady, "MIN_TOTAL_US", 0)
    monkeypatch.setattr(steady, "REPEATS", 2)
    forget()
    yield tmp_path / "loka"
    forget()


@pytest.fixture
def cheap_casts(monkeypatch):
    monkeypatch.setattr(timing, "_extra_us", lambda extra: 1e-5)
    monkeypatch.setattr(timing, "_measure", lambda loops: None)


@pytest.fixture
def clock(monkeypatch):
    """Counts the kernels that are timed."""
    runs = []
    honest = steady.timed_us
    monkeypatch.setattr(steady, "timed_us", lambda run, watched=True: runs.append(run) or honest(run, watched))
    return runs


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("sizes", [SIZES, Sizes(1, 5, 1, 7), Sizes(1, 1, 3, 130)], ids=str)
def test_every_kernel_there_is_can_be_timed(recipe, sizes, cache, cheap_casts):
    provider = "emulated" if recipe == "fp8_blockwise" else "aten"
    assert recipe_us(site(sizes), sizes, RECIPES[recipe], provider) > 0
    assert timing.keep_us(site(sizes), sizes) > 0


def test_batches_are_timed_as_batches(cache, cheap_casts):
    sizes = Sizes(3, 8, 4, 16)
    assert recipe_us(site(sizes), sizes, RECIPES["bf16"], "aten") > 0
    assert recipe_us(site(sizes), sizes, RECIPES["fp8_blockwise"], "emulated") > 0


def test_casts_of_operands_that_are_not_frozen_are_paid_for(cache, cheap_casts):
    frozen = recipe_us(site(), SIZES, RECIPES["int8_rowwise"], "aten")
    both = recipe_us(site(static_rhs=False), SIZES, RECIPES["int8_rowwise"], "aten")
    assert both - frozen == pytest.approx(1e-5 * SIZES.rhs)


def test_a_cast_is_timed_compiled(cache):
    assert recipe_us(site(), SIZES, RECIPES["int8_rowwise"], "aten") > 0
    keys = [key for key in json.loads(kept_times._file().read_text()) if key.startswith("loop")]
    assert {key.split()[1] for key in keys} == {"cast", "rescale", "pointwise"}


def test_casts_of_every_format_are_timed_compiled(cache):
    """Also those that few models ask for: FP8's traced no more than half."""
    casts = [cast(recipe, torch.float32, False, 64) for recipe in RECIPES.values()]
    timing._measure([loop for each in casts for loop in each.loops])
    assert all(timing._extra_us(each) > 0 for each in casts)


def test_a_time_is_measured_once(cache, cheap_casts, clock):
    first = timing.keep_us(site(), SIZES), recipe_us(site(), SIZES, RECIPES["bf16"], "aten")
    measured = len(clock)
    assert measured > 0
    assert (timing.keep_us(site(), SIZES), recipe_us(site(), SIZES, RECIPES["bf16"], "aten")) == first
    forget()  # as a new process would
    assert (timing.keep_us(site(), SIZES), recipe_us(site(), SIZES, RECIPES["bf16"], "aten")) == first
    assert len(clock) == measured
    assert [path.name for path in cache.iterdir()] == [kept_times._file().name]  # no scratch file is left


def test_other_sizes_and_formats_are_other_times(cache, cheap_casts, clock):
    timing.keep_us(site(), SIZES)
    for sizes, dtype in ((Sizes(1, 65, 48, 32), torch.float32), (SIZES, torch.bfloat16)):
        before = len(clock)
        timing.keep_us(site(sizes, dtype), sizes)
        assert len(clock) > before


def test_processes_side_by_side_keep_each_others_times(cache, clock):
    timing.keep_us(site(), SIZES)
    other = json.loads(kept_times._file().read_text()) | {"written meanwhile": 3.0}
    kept_times._file().write_text(json.dumps(other))
    timing.keep_us(site(dtype=torch.bfloat16), SIZES)
    assert json.loads(kept_times._file().read_text())["written meanwhile"] == 3.0


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"keep": null}', '{"keep": "x"}', "[" * 100_000, "\x00\xff"])
def test_a_damaged_file_is_ignored_and_replaced(text, cache, clock):
    kept_times._file().parent.mkdir(parents=True)
    kept_times._file().write_text(text)
    assert timing.keep_us(site(), SIZES) > 0 and clock
    assert len(json.loads(kept_times._file().read_text())) == 1


@pytest.mark.parametrize("wrong", ["NaN", "Infinity", "-1.0"])
def test_a_time_that_is_none_is_measured_anew(wrong, cache, clock):
    timing.keep_us(site(), SIZES)
    (key,) = json.loads(kept_times._file().read_text())
    kept_times._file().write_text(f'{{"{key}": {wrong}}}')
    forget()
    before = len(clock)
    assert timing.keep_us(site(), SIZES) > 0 and len(clock) > before


def test_a_cache_that_cannot_be_written_is_fine(cache, clock, monkeypatch):
    cache.parent.joinpath("file").write_text("")
    monkeypatch.setenv("LOKA_CACHE_DIR", str(cache.parent / "file" / "below"))  # root may write to read-only folders
    forget()
    first = timing.keep_us(site(), SIZES)
    measured = len(clock)
    assert first > 0 and timing.keep_us(site(), SIZES) == first and len(clock) == measured


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_fine(cache):
    cache.mkdir()
    cache.chmod(0o500)
    assert timing.keep_us(site(), SIZES) > 0 and list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "seconds, beat_us, at_least, most",
    [
        (0.030, 2_000.0, 1, 1),  # longer than generating code takes, and far behind
        (0.010, 3_000.0, 3, 3),  # behind: the first run, which may generate code, and two more
        (0.0005, 10.0, 5, 5),  # short: a run may have been interrupted, so it runs as often as any
        (0.001, 1_000_000.0, 11, 11),  # in front: for a hundredth of a second beside the first run
    ],
)
def test_a_kernel_that_lost_is_not_run_again(seconds, beat_us, at_least, most, monkeypatch):
    monkeypatch.setattr(steady, "REPEATS", 4)
    monkeypatch.setattr(steady, "timed_us", lambda run, watched=True: run() or steady.Us(seconds * 1e6))
    runs = []
    assert steady.best_us(lambda: runs.append(1), beat_us) == seconds * 1e6
    assert at_least <= len(runs) <= most


def test_a_first_run_that_was_in_the_way_of_other_work_is_no_defeat(monkeypatch):
    took = iter([steady.Us(90_000.0, noisy=True), *[steady.Us(2_000.0)] * 100])
    monkeypatch.setattr(steady, "timed_us", lambda run, watched=True: next(took))
    assert steady.best_us(lambda: None, 2_500.0) == 2_000


def candidates(*recipes):
    return [Candidate(recipe, "aten") for recipe in recipes]


def test_what_is_measured_ahead_is_compiled_at_once(cache, monkeypatch, clock):
    """All casts of all sites, and a thin product; what is asked for later is known."""
    compiled, honest = [], compat.compile_together
    monkeypatch.setattr(compat, "compile_together", lambda *args: compiled.append(len(args[0])) or honest(*args))
    thin = Sizes(3, 8, 1, 16)
    gemms = [
        asked(site(), SIZES, *candidates("int8_rowwise", "bf16")),
        asked(site(Sizes(1, 64, 48, 900)), Sizes(1, 64, 48, 900), *candidates("int8_rowwise")),
        asked(site(thin), thin),
    ]
    timing.measured(gemms, margin=1e-6)
    names = {key for key in kept_times.times() if key.startswith("loop")}
    assert compiled == [len(names)] and len(names) == 7 and any("product" in name for name in names)
    for key in names:
        assert kept_times.times()[key] > 0
    measured = len(clock)
    for each, times in zip(gemms, timing.measured(gemms, margin=1e-6), strict=True):
        timing.keep_us(each.site, each.sizes)
        assert all(times.costs[its.candidate].casts for its in each.fits)
    assert len(clock) == measured and len(compiled) == 1


def test_no_cast_is_compiled_for_a_kernel_without_a_chance(cache, monkeypatch):
    monkeypatch.setattr(timing, "_kernel_us", lambda site, sizes, recipe, provider, beat_us: 2 * beat_us)
    monkeypatch.setattr(compat, "compile_together", None)
    (times,) = timing.measured([asked(site(), SIZES, *candidates("bf16", "int8_rowwise"))], margin=1.0)
    assert not any(cost.casts for cost in times.costs.values())


def test_a_kernel_that_lost_far_is_not_timed_at_larger_sizes(cache, monkeypatch, clock):
    """fp8 in the emulation that stands in for a kernel: nothing but its like is out, and its own time stays known."""
    large, thin = Sizes(1, 128, 96, 64), Sizes(1, 512, 512, 32)
    small, recipe = Sizes(1, 64, 64, 64), RECIPES["fp8_rowwise"]
    monkeypatch.setattr(timing, "best_us", lambda run, beat_us=0.0: clock.append(run) or 1e4)
    assert not timing.lost(site(small), small, recipe, "aten")
    assert cost(site(small), small, recipe, "aten", margin=1e4 / 300.0) == Cost(1e4)
    assert "more than 30x as long" in timing.lost(site(large), large, recipe, "aten")
    assert not timing.lost(site(small), small, recipe, "aten")
    assert not timing.lost(site(thin), thin, recipe, "aten")
    assert not timing.lost(site(large), large, RECIPES["int8_rowwise"], "aten")
    assert not timing.lost(site(large), large, recipe, "torchao")
    timed = len(clock)
    (times,) = timing.measured([asked(site(large), large, Candidate("fp8_rowwise", "aten"))], margin=1.0)
    assert not times.costs and "more than 30x as long" in times.lost[Candidate("fp8_rowwise", "aten")]
    assert len(clock) == timed + 1  # the GEMM as it is


def test_timing_leaves_the_random_state_alone_and_works_under_inference_mode(cache, cheap_casts):
    state = torch.get_rng_state()
    with torch.inference_mode():
        recipe_us(site(), SIZES, RECIPES["int8_rowwise"], "aten")
    assert torch.equal(torch.get_rng_state(), state)
