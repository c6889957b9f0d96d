"""What is read from machine code, on toy kernels with a fault each; and that no kernel of loka has any."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile import cli
from loka_compile.kernels.launch import Launch
from loka_compile.machine import gcn, sass, ttir
from loka_compile.machine.instructions import Code, Instruction
from loka_compile.machine.kernel_list import specimens
from loka_compile.machine.kernel_report import aligned, modelled
from loka_compile.machine.machine_code import compile_for, wide_share
from loka_compile.spec.chips import CHIPS, arch_of

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


# ---------------------------------------------------------------- parts


def test_archs_by_either_name():
    assert arch_of("h100", "gfx942", "sm_90") == ["sm_90", "gfx942"]
    assert arch_of() == list(CHIPS)


def test_programs_by_registers():
    """CUDA's occupancy calculator: 64 registers leave 8 programs of 4 warps, 255 leave 2, 168 leave 1 of 8 warps."""
    sm_90, gfx942 = CHIPS["sm_90"], CHIPS["gfx942"]
    assert [sm_90.programs_by_registers(*each) for each in ((32, 4), (64, 4), (255, 4), (168, 8))] == [16, 8, 2, 1]
    assert [gfx942.programs_by_registers(*each) for each in ((32, 4), (128, 4), (512, 4), (256, 8))] == [8, 4, 1, 1]


def test_a_share_is_by_bytes():
    assert wide_share({"128": 1, "32": 4}) == 0.5
    assert wide_share({"tma": 1, "32": 4}) == 1.0
    assert wide_share({"16": 3}) == 0.0
    assert wide_share({}) is None


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(8, 16), (8, 24)], True),
        ([(8, 16), (8, 12)], False),
        ([(8, 16), (8, 1), (7,)], True),  # a column of scales, a vector beside a matrix
        ([(7,)], False),
        ([(8,)], True),
    ],
)
def test_aligned(shapes, expected):
    tensors = {str(i): torch.empty(shape, dtype=torch.bfloat16, device="meta") for i, shape in enumerate(shapes)}
    assert aligned(Launch(None, (1,), tensors | {"n": 3, "none": None})) is expected


SASS = """
//--------------------- .text.k --------------------------
.text.k:
        /*0000*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0010*/              @!P0 BRA `(.L_x_1) ;
.L_x_0:
        /*0020*/                   QGMMA.64x128x32.F32.E4M3.E5M2 R24, gdesc[UR16], R24 ;
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0040*/                   UTMALDG.2D [UR8], [UR4] ;
        /*0050*/               @P1 BRA `(.L_x_0) ;
.L_x_1:
        /*0060*/                   STG.E.U16 desc[UR4][R2.64], R4 ;
        /*0070*/               @P0 EXIT ;
        /*0080*/                   STL [R1], R0 ;
        /*0090*/                   STG.E desc[UR4][R2.64], R4 ;
        /*00a0*/                   EXIT ;
.L_x_2:
        /*00b0*/                   BRA `(.L_x_2);
//--------------------- .text.other --------------------------
.text.other:
        /*0000*/                   EXIT ;
"""


def test_sass():
    code = sass.parse(SASS, "k", "")
    assert len(code.instructions) == 12
    assert code.mma == {"QGMMA.64x128x32.E4M3": 1, "HMMA.16816.BF16": 1}
    assert [each.flops for each in code.instructions if each.mma] == [2 * 64 * 128 * 32 // 4, 2 * 16 * 8 * 16]
    assert [each.bits for each in code.instructions if each.mma] == [8, 16]
    assert code.widths("load") == {"128": 1, "tma": 1}
    assert code.widths("store") == {"16": 1, "32": 1}
    assert sum(each.local for each in code.instructions) == 1
    assert code.main_loop == {2, 3, 4, 5}
    assert code.every_trip(code.main_loop) == {2, 3, 4, 5}


def test_what_a_trip_may_leave_out():
    """0: enter; 1: head, may skip 2; 2: skipped; 3: end of the trip, may go back to 1; 4: exit."""
    jumps = {1: "three", 3: "one"}
    code = Code(
        [Instruction("x", jump=jumps.get(i, ""), ends=i == 4, always=i == 4) for i in range(5)], {"one": 1, "three": 3}
    )
    [loop] = code.loops
    assert loop == {1, 2, 3} and code.every_trip(loop) == {1, 3}


def test_shape_of_tensor_memory_products():
    descriptor = 8 << 24 | 32 << 17 | 0x10  # M 128, N 256
    ptx = f"mov.b32 %r7, {descriptor};\ntcgen05.mma.cta_group::1.kind::f8f6f4 [ %r1 + 0 ], %rd1, %rd2, %r7, %p1;\n"
    assert sass.tensor_memory_shape(ptx) == (128, 256, 32)
    assert sass.tensor_memory_shape("") is None
    [product] = sass.parse(
        "//--- .text.k ---\n        /*0000*/                   UTCQMMA gdesc[UR4], gdesc[UR6], tmem[UR8] ;", "k", ptx
    ).instructions
    assert (product.mma, product.flops, product.once) == ("UTCQMMA.128x256x32", 2 * 128 * 256 * 32, True)


GCN = """
k:                                      ; @k
; %bb.0:
	s_load_dwordx2 s[0:1], s[0:1], 0x0
	buffer_load_dwordx4 v[0:3], v0, s[0:3], 0 offen
.LBB0_1:
	v_mfma_f32_32x32x16_fp8_fp8 v[0:15], v[0:1], v[2:3], v[0:15]
	scratch_store_dword off, v0, s0
	s_cbranch_scc1 .LBB0_1
; %bb.2:
	global_store_short v0, v1, s[0:1]
	global_store_dwordx2 v0, v[1:2], s[0:1]
	s_endpgm
.Lfunc_end0:
    .vgpr_count:     45
    .vgpr_spill_count: 0
"""


def test_gcn():
    code = gcn.parse(GCN, "k")
    assert len(code.instructions) == 8
    assert code.mma == {"v_mfma_f32_32x32x16_fp8_fp8": 1}
    assert code.instructions[2].flops == 2 * 32 * 32 * 16 and code.instructions[2].bits == 8
    assert (code.widths("load"), code.widths("store")) == ({"128": 1}, {"16": 1, "64": 1})
    assert code.main_loop == {2, 3, 4}
    assert gcn.resources(GCN) == {"vgpr_count": 45, "vgpr_spill_count": 0}


TTIR = """
module {
  tt.func public @k(%a: !tt.ptr<f8E4M3FN> loc("a"), %K: i32 {tt.divisibility = 16 : i32} loc("K")) attributes {} {
    %c63 = arith.constant 63 : i32 loc(#loc)
    %c64 = arith.constant 64 : i32 loc(#loc)
    %c0 = arith.constant 0 : i32 loc(#loc)
    %c1 = arith.constant 1 : i32 loc(#loc)
    %n = arith.constant 100 : i32 loc(#loc)
    %zero = arith.constant dense<0.000000e+00> : tensor<16x32xf32> loc(#loc)
    %pid = tt.get_program_id x : i32 loc(#loc)
    %step = tt.get_num_programs x : i32 loc(#loc)
    scf.for %t = %pid to %n step %step  : i32 {
      %0 = arith.addi %K, %c63 : i32 loc(#loc)
      %trips = arith.divsi %0, %c64 : i32 loc(#loc)
      %acc = scf.for %k = %c0 to %trips step %c1 iter_args(%x = %zero) -> (tensor<16x32xf32>)  : i32 {
        %y = tt.load %p : tensor<16x64x!tt.ptr<f8E4M3FN>> loc(#loc)
        %z = tt.dot %y, %w, %x : tensor<16x64xf8E4M3FN> * tensor<64x32xf8E4M3FN> -> tensor<16x32xf32> loc(#loc)
        scf.yield %z : tensor<16x32xf32> loc(#loc)
      } loc(#loc)
      tt.store %q, %acc : tensor<16x32x!tt.ptr<f32>> loc(#loc)
    } loc(#loc)
    tt.return loc(#loc)
  } loc(#loc)
} loc(#loc)
"""


@settings(max_examples=50, deadline=None)
@given(k=st.integers(0, 1000), programs=st.integers(1, 200))
def test_work_of_a_persistent_gemm(k, programs):
    work = ttir.work(TTIR, {"K": k}, programs)
    trips = -(-k // 64)
    assert work.tile_flops == 2 * 16 * 32 * 64 * trips  # one tile, however many a program computes
    assert work.access_trips == [100 / programs, trips]
    assert work.types == {"f8E4M3FN"}


def test_trips_that_depend_on_data_are_unknown():
    work = ttir.work(TTIR, {}, 1)
    assert work.tile_flops is None and work.access_trips is None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_loops_are_the_cycles_that_can_be_entered_at_one_place(data):
    """Against the definition, on random control flow: a head that every way to the jump back passes, and all that
    reaches the jump without passing the head."""
    n = data.draw(st.integers(1, 9))
    kinds = [data.draw(st.sampled_from(["plain", "branch", "jump", "end"])) for _ in range(n)]
    targets = [data.draw(st.integers(0, n - 1)) for _ in range(n)]
    instructions, graph = [], nx.DiGraph()
    graph.add_nodes_from(range(n))
    for i, (kind, target) in enumerate(zip(kinds, targets, strict=True)):
        jumps, falls = kind in ("branch", "jump"), kind in ("plain", "branch") and i + 1 < n
        instructions.append(
            Instruction("x", jump=str(target) if jumps else "", ends=kind == "end", always=kind in ("jump", "end"))
        )
        graph.add_edges_from([(i, target)] * jumps + [(i, i + 1)] * falls)
    code = Code(instructions, {str(i): i for i in range(n)})
    expected: dict[int, set[int]] = {}
    for tail, head in graph.edges:
        without = graph.subgraph(set(graph) - {head})
        dominated = tail == head or head == 0 or not nx.has_path(without, 0, tail)
        if nx.has_path(graph, 0, tail) and dominated:
            inside = {i for i in without if tail in without and nx.has_path(without, i, tail)}
            expected.setdefault(head, {head}).update({tail} | {i for i in inside if nx.has_path(graph, 0, i)})
    assert sorted(map(sorted, code.loops)) == sorted(map(sorted, expected.values()))
