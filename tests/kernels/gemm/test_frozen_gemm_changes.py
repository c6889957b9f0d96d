"""loka::frozen_gemm after a change: every way to write to a parameter is seen, and what was made before is freed."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from loka_compile.kernels import frozen as module
from loka_compile.kernels.gemm.frozen_gemm import frozen_gemm
from tests.kernels.gemm.test_frozen_gemm import assert_fresh, int_product, parameter, unfrozen

pytestmark = pytest.mark.usefixtures("no_grad")


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
    """One piece of memory, which every parameter gets after the one before has died."""
    memory, addresses = bytearray(8 * 16 * 4), set()
    for i in range(20):
        values = torch.frombuffer(memory, dtype=torch.float32).view(8, 16).fill_(i + 1)
        weight = torch.nn.Parameter(values)
        addresses.add(weight.data_ptr())
        assert_fresh(weight)
        alive = weakref.ref(weight)
        del weight, values
        gc.collect()
        assert alive() is None
    assert len(addresses) == 1


def test_tied_parameter_and_its_views():
    """A view is another tensor: its changes reach the base, the base's reach the view."""
    base = parameter(16, 16)
    view = base.detach()[4:12]
    for tensor in (base, view):
        assert_fresh(tensor)
    in_place(view)
    for tensor in (base, view):
        assert_fresh(tensor)


def test_an_identity_cast_does_not_give_the_weight_away():
    """scaling `none` on a parameter that already has the dtype keeps no second copy, and still sees every change."""
    weight = torch.nn.Parameter(torch.randn(8, 16, dtype=torch.bfloat16))
    args = torch.randn(3, 16).bfloat16(), None, weight, True, torch.bfloat16, "none", torch.float32, "aten"
    for _ in range(2):
        assert torch.equal(frozen_gemm(*args), unfrozen(*args))
        data_write(weight)
