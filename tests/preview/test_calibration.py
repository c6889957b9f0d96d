"""Measured times beside the model, without the GPU: the laying side by side, the shares, the file, how it is named."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from loka_compile.preview import measure
from loka_compile.preview.calibration import CalibrationError, attained, load_rates, save_rates, with_times
from loka_compile.preview.model import kernel_us, rates_of
from loka_compile.preview.report import Preview
from loka_compile.preview.result import Kernel, Side
from loka_compile.spec.target import TARGETS

RATES = rates_of(TARGETS["h100"])


def library(nbytes: int, flops: int = 0) -> Kernel:
    return Kernel("forward", "library", "addmm", "bfloat16", flops, nbytes)


def triton(name: str, nbytes: int = 10**8) -> Kernel:
    return Kernel("forward", "triton", name, "bfloat16", 0, nbytes)


SIDE = Side("inductor", (library(10**8), triton("norm"), library(3 * 10**8), library(10**8), triton("norm")))


def test_times_are_laid_beside_the_launches():
    times = [("gemm_kernel", 5.0), ("norm", 2.0), ("splitk", 7.0), ("splitk_sum", 1.0), ("norm", 3.0)]
    side = with_times(SIDE, times)
    assert [k.us for k in side.kernels] == [5.0, 2.0, 7.0, 1.0, 3.0]
    assert side.measured_us == 18.0 and not side.notes


def test_a_library_call_that_launches_several_kernels_has_their_sum():
    times = [("a", 4.0), ("a_sum", 1.0), ("norm", 2.0), ("b", 4.0), ("b_sum", 2.0), ("c", 2.0), ("norm", 3.0)]
    side = with_times(SIDE, times)
    assert [k.us for k in side.kernels] == [5.0, 2.0, 6.0, 2.0, 3.0]  # between two norms: by bytes, 3 to 1


def test_other_kernels_than_were_recorded_are_not_taken_for_them():
    side = with_times(SIDE, [("gemm", 5.0), ("norm", 2.0)])
    assert side.measured_us is None and "other Triton kernels" in side.notes[-1]


def measured(share: float) -> Preview:
    """Every kernel at `share` of what the rates say it attains; nothing in it is launching."""
    kernels = [library(10**8), triton("n"), triton("m"), *(library(10**6, 10**12) for _ in range(3))]
    bare = replace(RATES, launch=0.0)
    own = tuple(replace(k, us=kernel_us(k.flops, k.bytes, k.dtype, bare)[0] / share) for k in kernels)
    side = Side("inductor", own)
    return Preview("mlp", "h100", False, "inductor", (side,), RATES, where="NVIDIA H100 80GB HBM3")


def test_shares_are_what_the_kernels_attained(tmp_path):
    file = tmp_path / "h100.json"
    saved = save_rates(measured(0.5), file)
    assert saved.flops == pytest.approx(0.78 / 2) and saved.bandwidth == pytest.approx(0.92 / 2)
    assert load_rates(file, "h100") == saved
    assert "calibrated on NVIDIA H100 80GB HBM3 (h100.json)" in str(saved)  # named wherever times are


def test_the_models_error_is_shown():
    text = str(measured(0.5))
    assert "measured (NVIDIA H100 80GB HBM3)" in text and "model's error" in text
    [line] = [line for line in text.splitlines() if line.startswith(("│ inductor", "| inductor"))]
    assert "%" in line


def test_too_few_kernels_give_no_share():
    with pytest.raises(CalibrationError, match="at least 3"):
        attained([replace(library(10**8), us=10.0)] * 2, RATES)
    kept = attained([replace(library(10**8), us=100.0)] * 3, RATES)
    assert kept.flops == RATES.flops and kept.bandwidth < RATES.bandwidth


@pytest.mark.parametrize(
    ("change", "why"),
    [({"format": "x"}, "not a calibration"), ({"target": "b200"}, "is of 'b200'"), ({"flops": 1.5}, "between 0 and 1")],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path, change, why):
    file = tmp_path / "h100.json"
    save_rates(measured(0.5), file)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CalibrationError, match=why):
        load_rates(file, "h100")


def test_steps_that_ran_something_else_do_not_count():
    steps = [[("a", 1.0), ("b", 2.0)], [("a", 3.0), ("b", 4.0)], [("a", 2.0), ("b", 9.0)], [("warm", 99.0)]]
    assert measure.medians(steps) == [("a", 2.0), ("b", 4.0)]


def test_copies_are_no_kernels():
    events = [("b", 5.0, 1.0), ("Memcpy DtoD", 3.0, 9.0), ("a", 1.0, 2.0)]
    assert measure.in_order(events) == [("a", 2.0), ("b", 1.0)]
