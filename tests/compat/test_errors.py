"""Errors for the person who called the model: their own type and message, and no frame of the compilation."""

from __future__ import annotations

import traceback

import pytest
import torch

import loka_compile as loka
from loka_compile.backend import DeviceError
from loka_compile.compat import raise_plainly
from loka_compile.spec.options import OptionsError

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def failing(error: Exception):
    def deep(gm, inputs):
        raise error

    def backend(gm, inputs):
        try:
            return deep(gm, inputs)
        except ValueError as error:
            raise_plainly(error)

    return torch.compile(torch.sin, backend=backend)


def test_what_is_raised_is_what_the_caller_sees() -> None:
    with pytest.raises(OptionsError) as caught:
        failing(OptionsError("target: expected cpu; got 'gpu'"))(torch.ones(2))
    assert str(caught.value) == "target: expected cpu; got 'gpu'"
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[0] == caught.traceback[0].name and "deep" not in names and "_call_user_compiler" not in names
    assert "OptionsError: target" in traceback.format_exception_only(caught.value)[-1]


def test_other_errors_are_dynamos() -> None:
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="KeyError"):
        failing(KeyError("lost"))(torch.ones(2))


@pytest.mark.parametrize(
    "options, kind, said",
    [
        ({"plam": None}, loka.OptionsError, "unknown option 'plam'"),
        ({"plan": "nowhere.json"}, loka.PlanError, "cannot read plan nowhere.json"),
        ({"profile": "nowhere.safetensors"}, loka.ProfileError, "nowhere.safetensors"),
    ],
)
def test_the_backend_raises_its_own_errors_so(options, kind, said) -> None:
    with pytest.raises(kind, match=said) as caught:
        torch.compile(torch.nn.Linear(4, 4), backend="loka", options=options)(torch.ones(2, 4))
    assert len(caught.traceback) < 12 and "TORCHDYNAMO" not in str(caught.value)


def test_a_device_without_kernels() -> None:
    with pytest.raises(DeviceError, match="meta"):
        torch.compile(torch.sin, backend="loka")(torch.ones(2, device="meta"))
