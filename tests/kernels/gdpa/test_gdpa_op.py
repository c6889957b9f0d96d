"""loka::gdpa as an op: its gradients, how it compiles on a CPU, what a band costs, and arguments that are refused."""

from __future__ import annotations

import pytest
import torch

import loka_compile as loka
from loka_compile.kernels.gdpa.gdpa_reference import ACTIVATIONS
from tests.kernels.gdpa.test_gdpa import draw, offsets, public


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("inside", "window", "jagged"), [(False, None, False), (True, 2, False), (False, 20, True)])
def test_gradcheck_of_the_reference(activation, inside, window, jagged):
    operands = draw(
        [55, 0, 3] if jagged else [5, 5], [64, 2, 0] if jagged else [7, 7], 2, 3, torch.float64, 1, (jagged, jagged)
    )
    leaves = [each.requires_grad_() for each in operands[:3]]

    def run(*qkv):
        return public(*qkv, *operands[3:], activation, 0.5, inside, window)

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    op = torch.ops.loka.gdpa.default
    longest = [64, 64] if jagged else [5, 7]
    rest = *operands[3:], *longest, activation, 0.5, inside, -1 if window is None else window
    grads = [torch.autograd.grad(f.sin().sum(), leaves) for f in (run(*leaves), op(*leaves, *rest))]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("jagged", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(jagged, dtype):
    q, k, v, cu_q, cu_k = draw([9, 9], [4, 4], 2, 8, dtype, 2, jagged)
    q, k, v = (each.requires_grad_() for each in (q, k, v))
    torch.library.opcheck(torch.ops.loka.gdpa.default, (q, k, v, cu_q, cu_k, 9, 4, "silu", 0.5, False, 3))


def test_one_activation_a_head():
    q, k, v, *_ = draw([9, 9], [4, 4], 4, 8, torch.float32, 3, (False, False))
    names = ["relu", "relu", "gelu", "relu"]
    out = loka.gdpa(q, k, v, activation=names, scale=0.5)
    for head, name in enumerate(names):
        alone = loka.gdpa(*(each[:, head : head + 1] for each in (q, k, v)), activation=name, scale=0.5)
        torch.testing.assert_close(out[:, head : head + 1], alone)


def test_compiled_on_cpu_it_is_plain_operations_with_a_dynamic_length():
    seen = []

    def backend(gm, inputs):
        seen.extend(node.target for node in gm.graph.nodes if node.op == "call_function")
        return gm.forward

    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]  # of other tests
    run = torch.compile(lambda *qkv: loka.gdpa(*qkv, window=2), backend=backend, fullgraph=True, dynamic=True)
    for length in (53, 61):
        q, k, v, *_ = draw([length], [length], 1, 8, torch.float32, 4, (False, False))
        torch.testing.assert_close(run(q.cpu(), k.cpu(), v.cpu()), loka.gdpa(q, k, v, window=2).cpu())
    assert seen and not [target for target in seen if "loka" in str(target)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 1


def test_a_band_is_not_the_square():
    """A window of 16 in 512 computes three blocks of 16 keys for each of queries, not 512."""
    from torch.utils.flop_counter import FlopCounterMode

    q, k, v, *_ = draw([512], [512], 1, 8, torch.float32, 5, (False, False))
    with FlopCounterMode(display=False) as counted:
        loka.gdpa(q.cpu(), k.cpu(), v.cpu(), window=16)
    assert counted.get_total_flops() == 2 * 2 * 512 * 48 * 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "softmax"}, "activation must be one of gelu, .*got 'softmax'"),
        ({"activation": ["relu"]}, r"got 1 for q \(2, 3, 5, 8\)"),
        ({"q": torch.ones(2, 3, 5, 8, dtype=torch.int64)}, "must have one float dtype, got torch.int64"),
        ({"q": torch.ones(2, 3, 5, 8).double()}, "must have one float dtype, got torch.float64, torch.float32"),
        ({"q": torch.ones(2, 5, 8)}, r"q must be \(B, H, T, D\) without cu_seqlens_q, got shape \(2, 5, 8\)"),
        ({"k": torch.ones(2, 3, 4, 9)}, "k and v must have one shape"),
        ({"q": torch.ones(3, 3, 5, 8)}, "q has 3 sequences, k and v have 2"),
        ({"cu_seqlens_q": offsets([5])}, r"q must be \(total, H, D\) with cu_seqlens_q"),
        ({"q": torch.ones(10, 3, 8), "cu_seqlens_q": torch.tensor([0.0, 5.0, 10.0])}, "vector of int32 or int64"),
        ({"window": -1}, "window must be at least 0"),
    ],
)
def test_bad_arguments(change, message):
    args = {"q": torch.ones(2, 3, 5, 8), "k": torch.ones(2, 3, 4, 8), "v": torch.ones(2, 3, 4, 8)} | change
    with pytest.raises(ValueError, match=message):
        loka.gdpa(args.pop("q"), args.pop("k"), args.pop("v"), **args)


def test_a_sequence_longer_than_was_said_is_an_error():
    q, k, v, cu_q, _ = draw([5, 9], [4, 4], 1, 8, torch.float32, 6, (True, False))
    with pytest.raises(IndexError):
        loka.gdpa(q.cpu(), k.cpu(), v.cpu(), cu_seqlens_q=cu_q.cpu(), max_seqlen_q=8)
