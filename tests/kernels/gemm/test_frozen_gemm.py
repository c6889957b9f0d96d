"""loka::frozen_gemm: a parameter quantized once, and never a stale one."""

from __future__ import annotations

import gc
import threading
import weakref

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


def in_place(weight):
    with torch.no_grad():
        weight.mul_(2)


def one_element(weight):
    with torch.no_grad():
        weight[3, 5] = 100.0


def optimizer_step(weight):
    weight.grad = torch.randn_like(weight)
    torch.optim.Adam([weight], lr=0.1).step()


def data_write(weight):
    weight.data.mul_(2)


def data_column(weight):
    weight.data[:, 1:].mul_(2)


def data_row(weight):
    weight.data[-8:].neg_()


def data_assign(weight):
    weight.data = torch.randn_like(weight)


def data_assign_other_layout(weight):
    weight.data = weight.data.t().contiguous().t()
    weight.data.neg_()


def no_grad_copy(weight):
    with torch.no_grad():
        weight.copy_(torch.randn_like(weight))


def inference_mode_update(weight):
    with torch.inference_mode():
        weight.mul_(3)


def state_dict(weight):
    holder = torch.nn.Module()
    holder.w = weight
    holder.load_state_dict({"w": torch.randn_like(weight)})


def state_dict_assign(weight):
    holder = torch.nn.Module()
    holder.w = weight
    holder.load_state_dict({"w": torch.randn_like(weight)}, assign=True)
    return holder.w


def view_write(weight):
    with torch.no_grad():
        weight.t()[0].add_(1)


@pytest.mark.parametrize(
    "change",
    [
        in_place,
        one_element,
        optimizer_step,
        data_write,
        data_column,
        data_row,
        data_assign,
        data_assign_other_layout,
        no_grad_copy,
        inference_mode_update,
        state_dict,
        state_dict_assign,
        view_write,
    ],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("shape", [(8, 16), (128, 1024), (257, 130)])
def test_quantized_anew_after_a_change(change, shape, quantized):
    weight = parameter(*shape)
    assert_fresh(weight)
    before = len(quantized)
    weight = change(weight) if change is state_dict_assign else (change(weight), weight)[1]
    int_product(weight)
    int_product(weight)
    assert len(quantized) == before + 1
    assert_fresh(weight)


def test_data_assigned_and_back():
    weight = parameter(8, 16)
    first = weight.data
    for value in (torch.randn(8, 16), first, torch.zeros(8, 16), first):
        weight.data = value
        assert_fresh(weight)


def test_weights_with_nan_are_never_served_stale():
    weight = parameter(8, 16)
    weight.data[0] = float("nan")
    assert int_product(weight)[:, 0].isnan().all()
    weight.data[0] = 1.0
    assert_fresh(weight)


def test_inference_tensors_are_never_kept(quantized):
    with torch.inference_mode():
        weight = torch.randn(8, 16)
        known = len(module._entries)
        for _ in range(3):
            assert_fresh(weight)
            weight.mul_(2)
    assert len(module._entries) == known


def test_an_entry_goes_with_its_parameter():
    weight = parameter(8, 16)
    int_product(weight)
    key, storage = id(weight), weakref.ref(weight)
    q = weakref.ref(module._entries[key].forms[True, "integers", 16, 0][0])
    del weight
    gc.collect()
    assert storage() is None
    assert q() is None
    assert key not in module._entries


def test_a_change_frees_what_was_made_before():
    weight = parameter(8, 16)
    int_product(weight)
    q = weakref.ref(module._entries[id(weight)].forms[True, "integers", 16, 0][0])
    in_place(weight)
    int_product(weight)
    gc.collect()
    assert q() is None


def test_parameters_at_a_reused_address_never_mix():
    addresses, ids = set(), set()
    for i in range(20):
        weight = torch.nn.Parameter(torch.full((8, 16), float(i + 1)))
        addresses.add(weight.data_ptr())
        ids.add(id(weight))
        assert_fresh(weight)
        del weight
    assert len(addresses) < 20 or len(ids) < 20  # else this has tested nothing


def test_tied_parameter_and_its_views():
    """A view is another tensor: its changes reach the base, the base's reach the view."""
    base = parameter(16, 16)
    view = base.detach()[4:12]
    for tensor in (base, view):
        assert_fresh(tensor)
    in_place(view)
    for tensor in (base, view):
        assert_fresh(tensor)


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


def test_an_identity_cast_does_not_give_the_weight_away():
    """scaling `none` on a parameter that already has the dtype keeps no second copy, and still sees every change."""
    weight = torch.nn.Parameter(torch.randn(8, 16, dtype=torch.bfloat16))
    args = torch.randn(3, 16).bfloat16(), None, weight, True, torch.bfloat16, "none", torch.float32, "aten"
    for _ in range(2):
        assert torch.equal(frozen_gemm(*args), unfrozen(*args))
        data_write(weight)


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
