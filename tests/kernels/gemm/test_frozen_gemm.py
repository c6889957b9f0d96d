"""loka::frozen_gemm: a parameter quantized once, and never a stale one."""

from __future__ import annotations

import threading

import pytest
import torch
from torch._library._out_variant import check_out_variant

from loka_compile.kernels import frozen as module
from loka_compile.kernels.gemm.frozen_gemm import frozen_gemm
from loka_compile.kernels.gemm.triton_gemm_launch import prepared
from loka_compile.kernels.providers import PROVIDERS
from loka_compile.kernels.providers.aten import frozen_int_mm, frozen_mm
from loka_compile.kernels.quantize import quantize as quantization

pytestmark = pytest.mark.usefixtures("no_grad")

E4M3 = torch.float8_e4m3fn
FORMS = [
    (torch.int8, "row", "aten"),
    (torch.int8, "row", "emulated"),
    (E4M3, "tensor", "aten"),
    (E4M3, "row", "aten"),
    (E4M3, "tile", "emulated"),
    (torch.bfloat16, "none", "aten"),
    (torch.float16, "none", "emulated"),
]
form = pytest.mark.parametrize(("dtype", "scaling", "provider"), FORMS, ids=lambda v: str(v).removeprefix("torch."))
transposed = pytest.mark.parametrize("transposed", [False, True])


def left(m, k, dtype, scaling):
    x = torch.randn(m, k)
    if scaling == "none":
        return x.to(dtype), None
    return quantization.reference(x, dtype, "block" if scaling == "tile" else scaling, -1)


def unfrozen(a, a_scale, weight, transposed, dtype, scaling, out_dtype, provider):
    """The same without keeping anything."""
    right = weight.detach().t() if transposed else weight.detach()
    q, scale = (right.to(dtype), None) if scaling == "none" else quantization.reference(right, dtype, scaling, -2)
    q = q.mT.contiguous().mT if dtype == E4M3 else q  # sums on a CPU depend on it
    return PROVIDERS[provider].product(a, a_scale, q, scale, out_dtype)


def parameter(*shape):
    return torch.nn.Parameter(torch.randn(*shape))


def int_product(weight, x=None):
    """x @ weight.T through frozen_int_mm, with weight's own scale: what a frozen linear computes but for a's scale."""
    a = torch.eye(weight.shape[1], dtype=torch.int8) * 127 if x is None else x
    acc, (scale, _) = frozen_int_mm(a, weight, True)
    return acc.float() * scale / 127


def assert_fresh(weight):
    """The op sees the weight as it is now."""
    back = quantization.dequantize(*quantization.reference(weight.detach().t(), torch.int8, "row", -2))
    torch.testing.assert_close(int_product(weight), back, rtol=1e-6, atol=0)


@form
@transposed
def test_equals_the_unfrozen_computation(dtype, scaling, provider, transposed):
    weight = parameter(*(48, 130) if transposed else (130, 48))
    for m in (1, 5, 0):
        args = *left(m, 130, dtype, scaling), weight, transposed, dtype, scaling, torch.float32, provider
        for _ in range(2):
            out = frozen_gemm(*args)
            assert out.dtype == torch.float32
            assert torch.equal(out, unfrozen(*args))


@transposed
def test_integer_form_equals_the_unfrozen_computation(transposed):
    weight = parameter(*(48, 130) if transposed else (130, 48))
    a, a_scale = left(7, 130, torch.int8, "row")
    acc, columns = frozen_int_mm(a, weight, transposed)
    assert acc.dtype == torch.int32
    assert columns.shape == (2, 48)
    scale, sums = columns
    expected = unfrozen(a, a_scale, weight, transposed, torch.int8, "row", torch.float32, "aten")
    assert torch.equal(acc.float() * (a_scale * scale), expected)
    right = quantization.dequantize(*module.quantized(weight, transposed, torch.int8, "row", 130))
    torch.testing.assert_close(sums, right.sum(0))


@transposed
@pytest.mark.parametrize("scaling", ["tensor", "row", "block", "tile"])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_fp8_is_kept_as_kernels_read_it(scaling, batch, transposed):
    """Along K: the Triton kernel's operand is what is kept, not a copy of it made at every call."""
    weight = parameter(*batch, 131, 144)
    q, _ = module.quantized(weight, transposed, E4M3, scaling, 144 if transposed else 131)
    right = weight.detach().mT if transposed else weight.detach()
    assert torch.equal(q.float(), quantization.reference(right, E4M3, scaling, -2)[0].float())
    a = torch.zeros(*batch, 5, q.shape[-2]).to(E4M3)
    assert prepared(a, q)[1].data_ptr() == q.data_ptr()


@transposed
@pytest.mark.parametrize("batch", [(), (3,)])
def test_sixteen_bits(batch, transposed):
    weight = parameter(*batch, *(48, 130) if transposed else (130, 48))
    right = weight.detach().mT if transposed else weight.detach()
    for m in (1, 5, 0):
        a = torch.randn(*batch, m, 130).bfloat16()
        expected = a @ right.bfloat16()
        assert torch.equal(frozen_mm(a, weight, transposed), expected)


def test_quantized_once_while_unchanged(quantized):
    weight, other = parameter(8, 16), parameter(8, 16)
    for _ in range(3):
        int_product(weight)
        int_product(other)
        with torch.no_grad():
            int_product(weight)
        with torch.inference_mode():
            int_product(weight)
    assert len(quantized) == 2


def test_each_form_is_quantized_once(quantized):
    weight = parameter(16, 16)
    for _ in range(2):
        for dtype, scaling in [(torch.int8, "row"), (E4M3, "row"), (E4M3, "tensor")]:
            for transposed in (False, True):
                args = *left(2, 16, dtype, scaling), weight, transposed, dtype, scaling, torch.float32, "emulated"
                assert torch.equal(frozen_gemm(*args), unfrozen(*args))
    activations = unfrozen_calls = 12
    assert len(quantized) == activations + unfrozen_calls + 6


def test_threads():
    """Readers while nothing changes: one quantization, right values in every thread."""
    weights = [parameter(32, 64) for _ in range(4)]
    expected = [int_product(w).clone() for w in weights]
    errors = []

    def work():
        try:
            with torch.no_grad():
                for i in range(40):
                    weight = weights[i % 4]
                    if not torch.equal(int_product(weight), expected[i % 4]):
                        errors.append(i)
                    assert_fresh(torch.nn.Parameter(torch.randn(8, 16)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not errors


@form
def test_outputs_are_the_callers_to_overwrite(dtype, scaling, provider):
    weight = parameter(48, 130)
    args = *left(5, 130, dtype, scaling), weight, True, dtype, scaling, torch.float32, provider
    expected = frozen_gemm(*args).clone()
    frozen_gemm(*args).zero_()
    assert torch.equal(frozen_gemm(*args), expected)
    if dtype == torch.int8:
        outputs = frozen_int_mm(args[0], weight, True)
        into = [torch.full_like(output, 7) for output in outputs]
        torch.ops.loka.frozen_int_mm.out(args[0], weight, True, acc=into[0], columns=into[1])
        assert all(map(torch.equal, into, outputs))
        for output in (*outputs, *into):
            output.zero_()
        assert frozen_int_mm(args[0], weight, True)[1].all()
        assert torch.equal(frozen_gemm(*args), expected)


@transposed
def test_opcheck(transposed):
    weight = parameter(*(7, 24) if transposed else (24, 7)).detach()
    a, _ = left(5, 24, torch.int8, "row")
    torch.library.opcheck(torch.ops.loka.frozen_int_mm.default, (a, weight, transposed))
    a16 = torch.randn(5, 24).bfloat16()
    torch.library.opcheck(torch.ops.loka.frozen_mm.default, (a16, weight, transposed))
    check_out_variant(torch.ops.loka.frozen_int_mm.default, torch.ops.loka.frozen_int_mm.out)  # as Inductor finds it
    a = torch.randn(5, 24).bfloat16()
    args = a, None, weight, transposed, torch.bfloat16, "none", torch.float32, "aten"
    torch.library.opcheck(torch.ops.loka.frozen_gemm.default, args)
    args = *left(5, 24, E4M3, "tensor"), weight, transposed, E4M3, "tensor", torch.bfloat16, "aten"
    torch.library.opcheck(torch.ops.loka.frozen_gemm.default, args, test_utils="test_faketensor")
