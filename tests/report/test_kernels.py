"""Kernels are read from Inductor's wrapper code, and nodes find theirs."""

from __future__ import annotations

from loka_compile.report.kernels import Node, assign, kernels_in

CPP = """
cpp_fused_relu_0 = async_compile.cpp_pybinding(['const float*', 'float*'], r'''
extern "C" void kernel(const float* in_ptr0, float* out_ptr0) {}
''')


cpp_fused_add_mul_1 = async_compile.cpp_pybinding(['float*'], r'''
extern "C" void kernel(float* out_ptr0) {}
''')


class Runner:
    def call(self, args):
        # Topologically Sorted Source Nodes: [linear], Original ATen: [aten.addmm]
        extern_kernels.addmm(arg0_1, arg2_1, reinterpret_tensor(arg1_1, (8, 8), (1, 8), 0), alpha=1, beta=1, out=buf0)
        assert_size_stride(buf0, (8, 8), (8, 1), 'torch.ops.aten.addmm.default')
        cpp_fused_relu_0(buf0, buf1)
        buf2 = torch.ops.loka.frozen_mm.default(buf1, arg3_1, False)
        cpp_fused_add_mul_1(buf2)
"""
GRAPH = [
    Node("x", "placeholder", []),
    Node("addmm", "addmm", [0]),
    Node("relu", "relu", [1]),
    Node("view", "view", [2]),
    Node("frozen_mm", "frozen_mm", [3]),
    Node("add", "add", [4]),
    Node("mul", "mul", [5]),
]
TRITON = """
# Topologically Sorted Source Nodes: [y, z], Original ATen: [aten.relu]
# Graph fragment:
#   %relu : [num_users=1] = call_function[target=torch.ops.aten.relu.default](args = (%x,), kwargs = {})
#   %add : [num_users=1] = call_function[target=torch.ops.aten.add.Tensor](args = (%relu, 1), kwargs = {})
#   return %add
triton_poi_fused_relu_0 = async_compile.triton('triton_poi_fused_relu_0', '''
def triton_poi_fused_relu_0(): pass
''', device_str='cuda')

def call(args):
    triton_poi_fused_relu_0.run(arg0_1, buf0, 64, stream=stream0)
"""


def test_kernels_and_the_order_they_run_in():
    kernels, launches = kernels_in(CPP)
    assert [kernels[place].name for place in launches] == [
        "aten.addmm",
        "cpp_fused_relu_0",
        "loka.frozen_mm",
        "cpp_fused_add_mul_1",
    ]
    assert {kernel.name: (kernel.kind, kernel.calls) for kernel in kernels}["aten.addmm"] == ("library", 1)
    assert "in_ptr0" in next(kernel for kernel in kernels if kernel.name == "cpp_fused_relu_0").code


def named(found, kernels):
    return [[(kernels[p if p >= 0 else ~p].name, p >= 0) for p in places] for places in found]


def test_library_calls_are_known_and_the_rest_lies_between():
    kernels, launches = kernels_in(CPP)
    assert named(assign(GRAPH, kernels, launches), kernels) == [
        [],
        [("aten.addmm", True)],
        [("cpp_fused_relu_0", False)],
        [],
        [("loka.frozen_mm", True)],
        [("cpp_fused_add_mul_1", False)],
        [("cpp_fused_add_mul_1", False)],
    ]


def test_a_library_that_is_called_more_often_than_the_graph_has_it_is_no_one_s():
    kernels, launches = kernels_in(
        CPP.replace("        cpp_fused_add_mul_1(buf2)", "        extern_kernels.addmm(a, b)")
    )
    found = named(assign(GRAPH, kernels, launches), kernels)
    assert found[1] == [] and found[4] == [("loka.frozen_mm", True)]


def test_triton_says_which_nodes():
    kernels, launches = kernels_in(TRITON)
    [kernel] = kernels
    assert (kernel.kind, kernel.calls, kernel.nodes) == ("triton", 1, ["relu", "add"])
    nodes = [Node("x", "placeholder", []), Node("relu", "relu", [0]), Node("add", "add", [1])]
    assert named(assign(nodes, kernels, launches), kernels)[1:] == [[("triton_poi_fused_relu_0", True)]] * 2
