"""Inductor's start ahead of time: the same answer as Inductor's own, and asked once."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import torch, torch._inductor.codecache
from torch._inductor import config, cpu_vec_isa
from loka_compile import compat
asked = []
honest = cpu_vec_isa.VecISA.check_build
# the program that every set is asked with; those for single instructions come on top
basic = cpu_vec_isa.VecISA._avx_code
cpu_vec_isa.VecISA.check_build = lambda isa, code: (code == basic and asked.append(str(isa))) or honest(isa, code)
compat.compiler_started()  # nobody asked: nothing to wait for
if {early}:
    for _ in range(2):
        compat.start_compiler()
    compat.compiler_started()
    compat.compiler_started()
    assert len(asked) <= 1, asked
print([str(isa) for isa in cpu_vec_isa.valid_vec_isa_list()], cpu_vec_isa.pick_vec_isa(), config.cpp.vec_isa_ok)
"""


def test_inductor_writes_for_the_same_instructions_whether_asked_early_or_not(tmp_path):
    told = []
    for early in (True, False):
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / str(early))}
        program = [sys.executable, "-c", PROGRAM.format(early=early)]
        told.append(subprocess.run(program, env=environment, capture_output=True, text=True, check=True).stdout)
    assert told[0] == told[1] != ""
