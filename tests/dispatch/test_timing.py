"""Measured times: positive, measured once, remembered on disk, and never in the way."""

from __future__ import annotations

import json
import os

import pytest
import sympy
import torch

from loka_compile.dispatch import timing
from loka_compile.dispatch.sizes import Sizes
from loka_compile.graph.site import Site
from loka_compile.recipes import RECIPES

SIZES = Sizes(1, 64, 48, 32)


def site(sizes=SIZES, dtype=torch.float32, static_rhs=True):
    numbers = map(sympy.Integer, (sizes.batch, sizes.M, sizes.N, sizes.K))
    return Site("fc#0:output", "mm", "output", *numbers, dtype, static_rhs=static_rhs)


def recipe_us(*args, **kwargs):
    return timing.cost(*args, **kwargs).alone_us


def forget():
    timing._file.cache_clear()
    timing._times.cache_clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and kernels that are run two times instead of fifty milliseconds."""
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path / "loka"))
    monkeypatch.setattr(timing, "MIN_TOTAL_US", 0)
    monkeypatch.setattr(timing, "REPEATS", 2)
    forget()
    yield tmp_path / "loka"
    forget()


@pytest.fixture
def cheap_casts(monkeypatch):
    monkeypatch.setattr(timing, "_compiled_us", lambda function, *inputs: 1e-5)


@pytest.fixture
def clock(monkeypatch):
    """Counts the kernels that are timed."""
    runs = []
    honest = timing._time_us
    monkeypatch.setattr(timing, "_time_us", lambda run: runs.append(run) or honest(run))
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
    keys = list(json.loads(timing._file().read_text()))
    assert [key.split()[0] for key in keys] == ["aten", "cast", "rescale"]


def test_a_time_is_measured_once(cache, cheap_casts, clock):
    first = timing.keep_us(site(), SIZES), recipe_us(site(), SIZES, RECIPES["bf16"], "aten")
    measured = len(clock)
    assert measured > 0
    assert (timing.keep_us(site(), SIZES), recipe_us(site(), SIZES, RECIPES["bf16"], "aten")) == first
    forget()  # as a new process would
    assert (timing.keep_us(site(), SIZES), recipe_us(site(), SIZES, RECIPES["bf16"], "aten")) == first
    assert len(clock) == measured
    assert [path.name for path in cache.iterdir()] == [timing._file().name]  # no scratch file is left


def test_other_sizes_and_formats_are_other_times(cache, cheap_casts, clock):
    timing.keep_us(site(), SIZES)
    for sizes, dtype in ((Sizes(1, 65, 48, 32), torch.float32), (SIZES, torch.bfloat16)):
        before = len(clock)
        timing.keep_us(site(sizes, dtype), sizes)
        assert len(clock) > before


def test_processes_side_by_side_keep_each_others_times(cache, clock):
    timing.keep_us(site(), SIZES)
    other = json.loads(timing._file().read_text()) | {"written meanwhile": 3.0}
    timing._file().write_text(json.dumps(other))
    timing.keep_us(site(dtype=torch.bfloat16), SIZES)
    assert json.loads(timing._file().read_text())["written meanwhile"] == 3.0


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"keep": null}', '{"keep": "x"}', "[" * 100_000, "\x00\xff"])
def test_a_damaged_file_is_ignored_and_replaced(text, cache, clock):
    timing._file().parent.mkdir(parents=True)
    timing._file().write_text(text)
    assert timing.keep_us(site(), SIZES) > 0 and clock
    assert len(json.loads(timing._file().read_text())) == 1


@pytest.mark.parametrize("wrong", ["NaN", "Infinity", "-1.0"])
def test_a_time_that_is_none_is_measured_anew(wrong, cache, clock):
    timing.keep_us(site(), SIZES)
    (key,) = json.loads(timing._file().read_text())
    timing._file().write_text(f'{{"{key}": {wrong}}}')
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


def test_a_hopeless_kernel_is_run_twice_after_its_first_run(cache, clock):
    recipe_us(site(), SIZES, RECIPES["fp8_rowwise"], "aten", beat_us=1e-3)
    assert len(clock) == 3


def test_timing_leaves_the_random_state_alone_and_works_under_inference_mode(cache, cheap_casts):
    state = torch.get_rng_state()
    with torch.inference_mode():
        recipe_us(site(), SIZES, RECIPES["int8_rowwise"], "aten")
    assert torch.equal(torch.get_rng_state(), state)
