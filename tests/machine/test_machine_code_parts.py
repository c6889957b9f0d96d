"""Parts of what is read from machine code: SASS, GCN and TTIR line by line, loops, registers and shares."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.kernels.launch import Launch
from loka_compile.machine import gcn, sass, ttir
from loka_compile.machine.instructions import Code, Instruction
from loka_compile.machine.kernel_report import aligned
from loka_compile.machine.machine_code import wide_share
from loka_compile.spec.chips import CHIPS, arch_of


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
