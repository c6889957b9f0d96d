"""How a model gets into the worker: by the name of what makes it, or pickled through a pipe. No file is written.

For the worker that compiles, tensors travel without their values: it has none to put them on. For the one that probes,
with them. Classes defined in a script go by running that script again under another name, as multiprocessing does;
what is defined in a notebook or at a prompt cannot go (cloudpickle, where installed, takes it by value).
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
import runpy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class TransportError(RuntimeError):
    """Why a model cannot be brought into the worker, and what to do."""


@dataclass(frozen=True)
class Source:
    """A model and its inputs. factory: MODULE:FACTORY, called in the worker. Else model, args and kwargs themselves."""

    factory: str = ""
    model: Any = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None

    @property
    def label(self) -> str:
        return self.factory or getattr(self.model, "__name__", type(self.model).__name__)

    def packed(self, values: bool) -> dict[str, Any]:
        """The bytes from which `unpack` makes the model in another process. Raises TransportError."""
        main = getattr(sys.modules["__main__"], "__file__", None)
        body: dict[str, Any] = {"path": list(sys.path), "factory": self.factory, "cwd": os.getcwd()}
        if not self.factory:
            body["main"] = os.path.abspath(main) if main and main.endswith(".py") else None
            body["pickle"] = _pickled((self.model, self.args, dict(self.kwargs or {})), values)
        return body


def unpack(body: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Model, positional and keyword inputs. Raises TransportError."""
    sys.path[:] = [*dict.fromkeys([*body["path"], body["cwd"]])]
    if body["factory"]:
        return _made(body["factory"])
    if body["main"]:
        module = sys.modules["__main__"]
        for name, value in runpy.run_path(body["main"], run_name="__mp_main__").items():
            if not name.startswith("__"):
                setattr(module, name, value)
    try:
        return pickle.loads(body["pickle"])  # from our own parent, through a pipe
    except (ImportError, AttributeError) as error:
        raise TransportError(
            f"the model does not unpickle in the worker: {error}. Define its classes in a module that can be imported, "
            "or give MODULE:FACTORY"
        ) from error


def _made(spec: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    module, _, name = spec.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)()
    except Exception as error:
        raise TransportError(f"{spec} failed: {type(error).__name__}: {error}") from error
    if not (isinstance(made, tuple) and len(made) == 2 and callable(made[0]) and isinstance(made[1], tuple | Mapping)):
        raise TransportError(f"{spec} must return (model, inputs), inputs a tuple or a dict of keywords")
    model, inputs = made
    return (model, (), dict(inputs)) if isinstance(inputs, Mapping) else (model, inputs, {})


def _pickled(value: Any, values: bool) -> bytes:
    try:
        from cloudpickle import Pickler
    except ImportError:
        Pickler = pickle.Pickler

    import torch
    from torch import nn

    class Shapes(Pickler):
        def reducer_override(self, obj: Any) -> Any:
            if type(obj) in (torch.Tensor, nn.Parameter, nn.Buffer):
                kind = isinstance(obj, nn.Parameter)
                return _shape_only, (tuple(obj.shape), obj.stride(), obj.dtype, obj.requires_grad, kind)
            inherited = getattr(super(), "reducer_override", None)
            return inherited(obj) if inherited else NotImplemented

    buffer = io.BytesIO()
    try:
        (Pickler if values else Shapes)(buffer).dump(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TransportError(
            f"the model does not pickle: {error}. Define its classes and functions at the top of a module, install "
            "cloudpickle, or give MODULE:FACTORY"
        ) from error
    return buffer.getvalue()


def _shape_only(shape: tuple[int, ...], stride: tuple[int, ...], dtype: Any, grad: bool, parameter: bool) -> Any:
    import torch

    tensor = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    return torch.nn.Parameter(tensor, requires_grad=grad) if parameter else tensor.requires_grad_(grad)
