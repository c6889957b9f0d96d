"""Instruction sets: what a CPU has, what the environment leaves of it, and what follows for products of bytes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from loka_compile.spec.processor import limited, processor

ZEN3 = {"cpu_name": "EPYC Milan", "architecture": "x86_64", "avx2": True}
SKYLAKE = {**ZEN3, "cpu_name": "Skylake", "avx512_f": True}
ALDER_LAKE = {**ZEN3, "cpu_name": "Alder Lake", "avx_vnni": True}
ZEN5 = {**SKYLAKE, "cpu_name": "Zen 5", "avx512_vnni": True, "avx_vnni": True, "avx512_bf16": True}
SAPPHIRE = {**ZEN5, "cpu_name": "Sapphire Rapids", "amx_int8": True, "amx_bf16": True}
GRAVITON = {"cpu_name": "Neoverse", "architecture": "aarch64", "neon": True, "dot": True, "sve": True}


@pytest.mark.parametrize(
    ("cpu", "saturates", "int_mm"),
    [
        (ZEN3, True, (False, False)),
        (SKYLAKE, True, (True, False)),
        (ALDER_LAKE, False, (False, False)),
        (ZEN5, False, (False, True)),
        (SAPPHIRE, False, (False, True)),
        (GRAVITON, False, (False, True)),
    ],
)
def test_products_of_bytes(cpu, saturates, int_mm):
    found = limited(cpu)
    assert found.onednn_saturates == saturates
    assert (found.int_mm_saturates, found.fast_int_mm) == int_mm
    assert found.has == found.aten == found.onednn


@pytest.mark.parametrize(
    ("level", "left", "saturates"),
    [
        ("AVX2", "avx2", True),
        ("avx2", "avx2", True),
        ("AVX2_VNNI", "avx2 avx_vnni", False),
        ("AVX512_CORE", "avx2 avx512f", True),
        ("AVX512_CORE_VNNI", "avx2 avx512f avx512_vnni", False),
        ("nonsense", "avx2 avx512f avx512_vnni avx_vnni avx512_bf16", False),
    ],
)
def test_what_onednns_variable_leaves_it(level, left, saturates):
    found = limited(ZEN5, onednn=level)
    assert found.onednn == set(left.split()) and found.aten == found.has
    assert found.onednn_saturates == found.int_mm_saturates == saturates
    assert ("not for oneDNN" in str(found)) == (found.onednn != found.has)


def test_what_atens_variable_leaves_it():
    found = limited(SAPPHIRE, aten="avx2")
    assert found.aten == {"avx2", "avx_vnni"} and found.onednn == found.has and not found.int_mm_saturates
    assert limited(SAPPHIRE, aten="avx512_vnni").aten == found.has


def test_its_name_tells_apart_what_kernels_differ_by():
    limits = ("", ""), ("avx2", ""), ("", "AVX2"), ("avx2", "AVX2")
    names = [str(limited(ZEN3)), *(str(limited(ZEN5, *each)) for each in limits)]
    assert len(set(names)) == 5
    assert names[1] == "Zen 5 avx2 avx512f avx512_vnni avx_vnni avx512_bf16"
    assert names[3] == "Zen 5 avx2 (avx512f, avx512_vnni, avx_vnni, avx512_bf16: not for oneDNN)"


MEASURED = """
import torch
from loka_compile.spec.processor import processor
a, b = torch.full((8, 64), 255, dtype=torch.uint8), torch.full((64, 8), 127, dtype=torch.int8)
exact = bool((torch._int_mm(a, b) == 255 * 127 * 64).all())
packed = torch.ops.onednn.qlinear_prepack(b.t().contiguous(), None)
zeros = torch.zeros(8, dtype=torch.int32)
made = torch.ops.onednn.qlinear_pointwise(
    a, 1.0, 0, packed, torch.ones(8), zeros, None, 1.0, 0, torch.float32, "none", [], ""
)
one = bool((made == 255 * 127 * 64).all())
print(exact == (not processor().int_mm_saturates), one == (not processor().onednn_saturates), exact, one)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's variable names x86's instruction sets")
@pytest.mark.parametrize("level", ["AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", ""])
def test_it_says_what_products_do(level):
    """In a process of its own, as oneDNN reads the variable once."""
    limits = {"ONEDNN_MAX_CPU_ISA": level} if level else {}
    clean = {k: v for k, v in os.environ.items() if not k.endswith("_MAX_CPU_ISA")}
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, env={**clean, **limits})
    assert done.stdout.split()[:2] == ["True", "True"], done.stdout + done.stderr
    if level == "AVX2":
        assert done.stdout.split()[3] == "False"


def test_this_machine():
    found = processor()
    assert found.name and found.architecture and found.aten <= found.has and found.onednn <= found.has
    assert found is processor()
