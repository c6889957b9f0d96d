"""What is read from machine code, on toy kernels with a fault each; and that no kernel of loka has any."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from loka_compile import cli
from loka_compile.kernels.launch import Launch
from loka_compile.machine.kernel_list import specimens
from loka_compile.machine.kernel_report import modelled
from loka_compile.machine.machine_code import compile_for
from loka_compile.spec.chips import CHIPS

LOKA = Path(sys.executable).with_name("loka")


def loka_kernels(folder, *arguments):
    """Rows, and the finished process, which had TRITON_INTERPRET as these tests have."""
    out = folder / "kernels.json"
    command = [LOKA, "kernels", *arguments, "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode in (0, 1), done.stderr
    return json.loads(out.read_text())["kernels"], done


def compile_toys(folder, *archs):
    """{arch: {name: row}}, and what was printed."""
    rows, done = loka_kernels(folder, "--module", "toy_kernels", "--target", *archs)
    assert done.returncode == 1 and done.stderr == ""
    return {arch: {row["name"]: row for row in rows if row["arch"] == arch} for arch in archs}, done.stdout


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compile_toys(tmp_path_factory.mktemp("toys"), "sm_90", "gfx942")


@pytest.fixture(scope="module")
def toys(compiled):
    return compiled[0]


def check_sound(rows):
    """What holds of every toy on every chip, whatever its faults."""
    for name, row in rows.items():
        code = row["code"]
        if code is None:
            assert name == "refused"
            continue
        assert 0 < code["registers"] <= 512
        assert code["loop"] < code["instructions"]
        assert sum(code["loop_mma"].values()) <= sum(code["mma"].values())
        if name != "fp8, roles":
            assert (code["flops_per_instruction"] is None) != (code["bytes_per_instruction"] is None)
        assert (code["occupancy"] >= 1) == (code["shared"] <= CHIPS[code["arch"]].shared_limit)


# ---------------------------------------------------------------- every fault is found, and only where it is

FAULTS = {
    "column sums": [],
    "column sums, all wide": ["wide_stores: 0% of the bytes in 128 bits or more"],
    "masked": ["stores of 16 bits or less"],
    "masked, unaligned": [],
    "bf16 for fp8": ["no FP8 tensor-core instruction in the main loop"],
    "no product": ["no tensor-core instruction in the main loop"],
    "spilling": ["spills: "],
    "refused": ["does not compile: refused for "],
    "fp8": [],
}
ONLY_SM_90 = {
    "fp8, flat": [],
    "fp8, roles": [],
    "too much shared memory": ["bytes of shared memory, sm_90 gives 232448"],
}
ONLY_GFX942 = {"foreign fp8": ["FP8 products, yet none on the tensor cores: v_mfma_f32_32x32x8_f16"]}


@pytest.mark.parametrize(
    ("arch", "name", "expected"),
    [
        *[("sm_90", *each) for each in (FAULTS | ONLY_SM_90).items()],
        *[("gfx942", *each) for each in (FAULTS | ONLY_GFX942).items()],
    ],
)
def test_faults(toys, arch, name, expected):
    found = toys[arch][name]["faults"]
    assert len(found) == len(expected)
    assert all(part in fault for part, fault in zip(expected, found, strict=True))


def test_figures_are_sound(toys):
    for rows in toys.values():
        check_sound(rows)


@pytest.mark.slow
def test_figures_are_sound_on_blackwell(tmp_path):
    rows = compile_toys(tmp_path, "sm_100")[0]["sm_100"]
    check_sound(rows)
    code = rows["fp8"]["code"]
    assert set(code["mma"]) == {"UTCQMMA.128x256x32"} and code["loads"]["tma"] and code["stores"] == {"tma": 1}
    assert {name for name, row in rows.items() if not row["faults"]} == {
        "column sums",
        "masked, unaligned",
        "fp8",
        "fp8, flat",
        "fp8, roles",
    }
    roles = rows["fp8, roles"]["code"]  # on Blackwell Triton gives warps roles, and what each runs is not known
    assert roles["warps"] > 8 and roles["tile"] is None and roles["flops_per_instruction"] is None


def test_a_persistent_fp8_gemm_on_hopper(toys):
    code = toys["sm_90"]["fp8"]["code"]
    # K is walked in four trips of BK = 128; a warp group multiplies 64 x 256 x 32.
    assert code["loop_mma"] == {"QGMMA.64x256x32.E4M3": 4}
    assert code["tile_flops"] == 2 * 128 * 256 * 512
    assert code["tile"] == code["instructions"] + 3 * code["loop"]
    assert code["flops_per_instruction"] == code["tile_flops"] / (8 * code["tile"])
    assert code["headroom"] == pytest.approx(code["flops_per_instruction"] * 4 / 8192)
    assert code["loop_per_mma"] == code["loop"] / 4
    assert (code["wide_loads"], code["wide_stores"], code["stores"]) == (1.0, 1.0, {"tma": 1})
    assert code["shared"] >= 3 * (128 + 256) * 128  # three stages of both operands
    assert (code["occupancy"], code["stack"], code["spills"]) == (1, 0, 0)


def test_a_flat_loop_counts_its_epilogue_once(toys):
    """Both kernels do the same for a tile; the flat one has the epilogue in its only loop."""
    nested, flat = (toys["sm_90"][name]["code"] for name in ("fp8", "fp8, flat"))
    assert flat["loop"] > 4 * nested["loop"]
    assert flat["tile_flops"] == nested["tile_flops"]
    assert nested["tile"] < flat["tile"] < flat["instructions"] + 2 * nested["loop"] * 3


def test_a_loop_without_products(toys):
    for arch in ("sm_90", "gfx942"):
        code = toys[arch]["column sums"]["code"]
        assert code["mma"] == {}
        trips = 65536 // 32
        assert code["executed"] == code["instructions"] + (trips - 1) * code["loop"]
        assert code["bytes"] == (65536 * 512 * 2 + 512 * 4) / 4  # four programs
        assert code["bytes_per_instruction"] == code["bytes"] / (4 * code["executed"])
        assert code["wide_loads"] == 1.0 and code["stores"] == {"32": 1}


def test_the_model_beside_the_unfused_sequence(toys):
    row = toys["sm_90"]["fp8"]
    flops, peak, bandwidth = 2 * 65536 * 512 * 512, 1979e12 * 0.78, 3.35e12 * 0.92
    moved = 65536 * 512 + 512 * 512 + 65536 * 512 * 2 + 65536 * 4
    assert (row["fused"]["bytes"], row["fused"]["flops"], row["fused"]["launches"]) == (moved, flops, 1)
    assert row["fused"]["us"] == pytest.approx(max(flops / peak, moved / bandwidth) * 1e6 + 2)
    expected = (max(flops / peak, 1e8 / bandwidth) + 3e8 / bandwidth) * 1e6 + 4
    assert row["unfused"] == {"launches": 2, "flops": flops, "bytes": 4 * 10**8, "us": pytest.approx(expected)}


def test_what_is_printed(compiled):
    rows, printed = compiled
    for arch in rows:
        assert f"{arch}: machine code" in printed and f"{arch}: roofline" in printed
    hopper = printed.partition("gfx942: machine code")[0]
    [counted, cost] = [re.split(r"\s*[│┃]\s*", line)[1:-1] for line in hopper.splitlines() if "│ fp8  " in line]
    code, row = rows["sm_90"]["fp8"]["code"], rows["sm_90"]["fp8"]
    flops, share = f"{code['flops_per_instruction']:.0f}", f"{row['fused']['bytes'] / 4e8:.0%}"
    assert counted[1] == "8, 3" and counted[3] == str(code["registers"]) and flops in counted
    assert counted[-3:] == ["100", "100", "0"]
    wrong = [f"!! {name}: {fault}" for name, row in rows["sm_90"].items() for fault in row["faults"]]
    assert [line.strip() for line in hopper.splitlines() if line.startswith("!!")] == wrong
    assert cost[3:] == [
        "1",
        f"{row['fused']['us']:.1f}",
        "400.0",
        "2",
        f"{row['unfused']['us']:.1f}",
        share,
        f"{row['unfused']['us'] / row['fused']['us']:.2f}",
    ]


def test_only_what_is_asked_for(tmp_path):
    rows, done = loka_kernels(tmp_path, "--module", "toy_kernels", "--target", "h100", "--kernel", "unaligned")
    assert [row["name"] for row in rows] == ["masked, unaligned"] and done.returncode == 0


def test_no_time_is_modelled_for_a_chip_without_peaks():
    assert modelled(CHIPS["sm_89"], 8, [(10**9, 10**6)]).us is None


# ---------------------------------------------------------------- loka's own kernels


def check_faultless(folder, *targets):
    rows, done = loka_kernels(folder, "--target", *targets)
    assert {row["arch"] for row in rows} == set(targets)
    wrong = [f"{row['arch']} {row['name']}: {'; '.join(row['faults'])}" for row in rows if row["faults"]]
    assert not wrong, "\n".join(wrong)
    assert done.returncode == 0
    return rows


EPILOGUES = {
    "gemm_norm rms relu fp8 to fp8 65536x512x512": ("sm_90", "sm_100", "gfx942"),
    "gemm_norm rms/256 hard_swish fp8 to fp8 65536x512x512": ("sm_90", "sm_100", "gfx942"),
    "gemm_norm rms silu fp8 to fp8 65536x512x512": ("sm_90", "sm_100", "gfx942"),
    "gemm_norm layer affine relu fp8 to fp8 65536x512x512": ("sm_100", "gfx942"),  # 2222 on sm_90
    # LayerNorm in inference, its mean taken out of the parameters (loka::frozen_gemm_norm, centered)
    "gemm_norm rms affine relu fp8 to fp8 65536x512x512": ("sm_90", "sm_100", "gfx942"),
}
"""Whose tensor operations by instruction are at least 80 % of the best public plain row-wise FP8 GEMM's."""
BARS = {"sm_90": 0.8 * 2966, "sm_100": 0.8 * 3246, "gfx942": 0.8 * 3424}


def check_epilogues(rows):
    found = {(row["name"], row["arch"]): row["code"]["flops_per_instruction"] for row in rows}
    for name, archs in EPILOGUES.items():
        for arch in {row["arch"] for row in rows}.intersection(archs):
            assert found[name, arch] >= BARS[arch], (name, arch)


@pytest.mark.slow
def test_no_default_configuration_has_a_fault_on_hopper(tmp_path):
    names = [specimen.name for _, specimen in specimens("sm_90")]
    assert names
    rows = check_faultless(tmp_path, "sm_90")
    assert [row["name"] for row in rows] == names
    check_epilogues(rows)


@pytest.mark.slow
def test_no_default_configuration_has_a_fault_on_any_chip(tmp_path):
    check_epilogues(check_faultless(tmp_path, *CHIPS))


def test_names_of_specimens_are_unique():
    for arch in CHIPS:
        names = [specimen.name for _, specimen in specimens(arch)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "sm_9"], "target: expected one of h100, "),
        (["--target", "h10"], "got 'h10'; did you mean 'h100'?"),
        (["--target", "sm_90", "--jobs", "0"], "--jobs: expected at least 1, got 0"),
        (["--module", "not_there"], "there is no module not_there"),
        (["--target", "sm_90", "--kernel", "no such"], "no kernel is listed with 'no such' in its name"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(capsys, arguments, message):
    assert cli.main(["kernels", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("loka: ") and message in err and err.count("\n") == 1


def test_the_interpreter_is_named_as_what_is_in_the_way():
    class Interpreted:
        __name__ = "kernel"

    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        compile_for(Launch(Interpreted(), (1,), {}), "sm_90")
