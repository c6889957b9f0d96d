"""Kernels compiled together: the same numbers, one file, found again; others one by one."""

from __future__ import annotations

import pytest
import torch
import torch._functorch.config
import torch._inductor.config

from loka_compile.compat import few_files
from loka_compile.compat.few_files import Kernel, in_few_files

SIMPLE = """
#include <torch/csrc/inductor/cpp_prefix.h>
extern "C"  void  kernel(const float* in_ptr0,
                       float* out_ptr0,
                       const int64_t ks0)
{
    {
        #pragma GCC ivdep
        for(int64_t x0=0L; x0<ks0; x0+=1L)
        {
            out_ptr0[x0] = in_ptr0[x0] + 1;
        }

    }
}
"""
TYPES = ["const float*", "float*", "const int64_t"]


@pytest.fixture(params=[1])
def files(tmp_path, monkeypatch, request):
    """Files of kernels that were compiled since, in a cache of its own; graphs are lowered anew each time."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    lowered_anew = torch._functorch.config.patch(enable_autograd_cache=False)
    with torch._inductor.config.patch(compile_threads=request.param, fx_graph_cache=False), lowered_anew:
        yield lambda: [each for each in tmp_path.rglob("*.main.so")]
    torch.compiler.reset()


def model(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Three loops, between which products stand."""
    a = (x.relu().sum(-1, keepdim=True) * x).softmax(-1)
    b = (a @ w).sin()
    return a, b, (b @ w).tanh() + x


def compiled(x, w):
    torch.compiler.reset()
    with torch.no_grad(), in_few_files():
        return torch.compile(model)(x, w)


@pytest.mark.parametrize("files", [1, 2], indirect=True)
def test_a_graph_has_as_many_files_as_are_compiled_at_once_and_the_same_numbers(files, request):
    x, w = torch.rand(16, 64), torch.rand(64, 64) / 64
    torch.testing.assert_close(compiled(x, w), model(x, w))
    assert len(files()) == request.node.callspec.params["files"]


def test_a_kernel_that_is_there_is_not_compiled_again(files):
    x, w = torch.rand(24, 64), torch.rand(64, 64) / 64  # sizes of no other test: a process keeps what it loaded
    compiled(x, w)
    torch.testing.assert_close(compiled(x, w), model(x, w))
    assert len(files()) == 1


def test_where_they_cannot_be_compiled_together_they_are_compiled_one_by_one(files, monkeypatch):
    monkeypatch.setattr(few_files, "_HEADERS", "#error one by one\n")
    x, w = torch.rand(40, 64), torch.rand(64, 64) / 64
    torch.testing.assert_close(compiled(x, w), model(x, w))
    assert len(files()) == 3


def test_a_kernel_is_known_by_its_code_its_arguments_and_the_command_that_compiles_it():
    one = Kernel.of(TYPES, SIMPLE, lambda: "g++ -O3")
    assert one == Kernel.of(TYPES, SIMPLE, lambda: "g++ -O3")
    others = [
        Kernel.of(TYPES, SIMPLE.replace("+ 1;", "+ 2;"), lambda: "g++ -O3"),
        Kernel.of([*TYPES[:2], "int64_t"], SIMPLE, lambda: "g++ -O3"),
        Kernel.of(TYPES, SIMPLE, lambda: "g++ -O3 -mavx2"),
    ]
    assert len({each.name for each in [one, *others]}) == 4


@pytest.mark.parametrize(
    "other",
    [
        SIMPLE.replace('extern "C"', 'static int64_t calls = 0;\nextern "C"'),
        SIMPLE + "\nstatic int64_t calls = 0;\n",
        SIMPLE.replace("}\n", "}\n\nvoid helper()\n{\n}\n", 1).replace("    }\n}\n", "    }\n}\nvoid last() {}\n"),
        SIMPLE.replace("#include <torch", "#include <ATen/native/cpu/utils.h>\n#include <torch"),
    ],
)
def test_code_that_is_more_than_one_function_is_left_to_inductor(other):
    assert Kernel.of(TYPES, other, lambda: "g++") is None
    assert Kernel.of(TYPES, SIMPLE, lambda: "g++") is not None
