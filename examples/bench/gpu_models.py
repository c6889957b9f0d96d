"""Whole models on a GPU: eager, Inductor and loka, inference and training, in turns, timed by CUDA events.

Each variant is a step of the model in bf16: a forward, in training a backward too. loka's plan comes from a probe on
the same GPU. Inputs are drawn ids within the tables' rows, so that no data set is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import loka_compile as loka
from examples.models.dcnv2 import DCNv2
from examples.models.dlrm import DLRM
from examples.models.wukong import Wukong

CARDINALITIES, GENRES = (944, 14, 3, 22, 1683, 80, 11, 22, 22), 20
"""Sizes of the tables, those of MovieLens-100k."""
MODELS: dict[str, type[nn.Module]] = {"wukong": Wukong, "dlrm": DLRM, "dcnv2": DCNv2}
BATCH = 16384


def made(name: str, batch: int, device: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The model in bf16 and its inputs: ids (batch, fields), genres (batch, 6)."""
    torch.manual_seed(0)
    ids = torch.stack([torch.randint(1, size, (batch,)) for size in CARDINALITIES], dim=1)
    genres = torch.randint(1, GENRES, (batch, 6))
    model = MODELS[name](CARDINALITIES, GENRES)
    return model.to(device, torch.bfloat16), (ids.to(device), genres.to(device))


def probed(model: nn.Module, inputs: tuple[Tensor, ...], training: bool) -> Any:
    """What a probe of one step learns."""
    with torch.set_grad_enabled(training), loka.probe(model) as probe:
        out = model(*inputs)
        if training:
            out.float().square().mean().backward()
    model.zero_grad()
    return probe.profile


def variants(model: nn.Module, profile: Any) -> dict[str, Callable[..., Tensor]]:
    """By name, how the model is called."""
    return {
        "eager": model,
        "inductor": torch.compile(model, dynamic=False),
        "loka": torch.compile(model, backend="loka", dynamic=False, options={"profile": profile}),
    }


def step(call: Callable[..., Tensor], model: nn.Module, inputs: tuple[Tensor, ...], training: bool) -> Tensor:
    with torch.set_grad_enabled(training):
        out = call(*inputs)
        if training:
            model.zero_grad(set_to_none=True)
            out.float().square().mean().backward()
    return out.detach()


def run(name: str, training: bool, timed: Callable[..., dict[str, float]], rounds: int) -> dict[str, Any]:
    """Microseconds of each variant, its first call in seconds, and its output's error against eager in float32.

    A variant that fails is in `failed`, with the reason.
    """
    model, inputs = made(name, BATCH, "cuda")
    model.train(training)
    wide = made(name, BATCH, "cuda")[0].float()
    wide.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
    want = step(wide.eval(), wide, inputs, False).double()
    calls: dict[str, Callable[[], object]] = {}
    first, errors, failed = {}, {}, {}
    torch.compiler.reset()
    for key, call in variants(model, probed(model, inputs, training)).items():
        started = time.perf_counter()
        try:
            step(call, model, inputs, training)
            torch.cuda.synchronize()
        except Exception as error:  # what cannot run is a result, and the others go on
            failed[key] = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            continue
        first[key] = time.perf_counter() - started
        if not training:
            got = step(call, model, inputs, False).double()
            errors[key] = float((got - want).norm() / want.norm())
        calls[key] = lambda call=call: step(call, model, inputs, training)
    return {
        "model": name,
        "training": training,
        "batch": BATCH,
        "us": timed(calls, rounds),
        "first_call_s": first,
        "error": errors,
        "failed": failed,
    }
