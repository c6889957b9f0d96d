"""A process of its own: `python -m loka_compile.preview.worker`. A pickled request on stdin, a JSON line an answer.

    {"job": "plan", ...}     probes the model on the CPU; answers {"plans": {target: a plan's JSON}}
    {"job": "sides", ...}    compiles for a GPU that is not here; answers one side a line, as soon as it has it; with
                             "rates", loka's plan is raced by them first (raced.py)
    {"job": "measure", ...}  runs on the GPU that is here; answers the kernels' times, one side a line

What the model prints goes to stderr. An answer {"error": ...} ends it.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import traceback
from collections.abc import Iterator
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = pickle.load(sys.stdin.buffer)
    try:
        for answer in _JOBS[request["job"]](request):
            print(json.dumps(answer), file=answers, flush=True)
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"error": one_line(error)}), file=answers, flush=True)


def _sides(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from loka_compile.preview import shim

    shim.load()  # before torch
    from loka_compile.preview import sides, transport
    from loka_compile.preview.model import Rates
    from loka_compile.preview.raced import raced
    from loka_compile.preview.result import side_from_json
    from loka_compile.spec.plan import parse_plan

    model, args, kwargs = cast(*transport.unpack(request["source"]), request["dtype"])
    plan = parse_plan(request["plan"]).unpinned() if request["plan"] else None
    target, training = request["target"], request["training"]
    compiled: dict[Any, Any] = {}
    done: dict[str, dict[str, Any]] = {}

    def run(name: str, *plan_and_options: Any, products_only: bool = False) -> dict[str, Any]:
        more: dict[str, Any] = {"compiled": compiled, "products_only": products_only}
        return sides.run(name, model, args, kwargs, target, training, *plan_and_options, **more)

    for name in request["sides"]:
        yield {"started": name}
        try:
            if name == "loka" and plan is not None and request.get("rates"):
                inductor = side_from_json(done.get("inductor") or run("inductor", products_only=True))
                yield raced(run, plan, Rates(**request["rates"]), training, inductor)
            else:
                done[name] = run(name, plan)
                yield done[name]
        except Exception as error:  # the others are still shown
            traceback.print_exc()
            yield {"name": name, "error": one_line(error)}


def _plan(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import torch

    from loka_compile.dispatch.choose import dispatch
    from loka_compile.preview import transport
    from loka_compile.preview.sides import step
    from loka_compile.probe.session import probe
    from loka_compile.spec.options import Options

    model, args, kwargs = cast(*transport.unpack(request["source"]), request["dtype"])
    if not isinstance(model, torch.nn.Module):
        raise ValueError("loka's side needs a module to probe, and this is a function: give a plan or a profile")
    model.train(request["training"])
    with probe(model) as running:
        step(model, model, args, kwargs, request["training"])
    plans = {name: dispatch(running.profile, options=Options(target=name)).to_json() for name in request["targets"]}
    yield {"plans": plans}


def _measure(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from loka_compile.preview import measure, transport
    from loka_compile.spec.plan import parse_plan

    model, args, kwargs = cast(*transport.unpack(request["source"]), request["dtype"])
    plan = parse_plan(request["plan"]).unpinned() if request["plan"] else None
    for name in request["sides"]:
        yield {"started": name}
        try:
            times = measure.run(
                name, model, args, kwargs, request["target"], request["training"], plan, request["options"]
            )
            yield {"name": name, "times": times}
        except Exception as error:
            traceback.print_exc()
            yield {"name": name, "error": one_line(error)}


def cast(model: Any, args: Any, kwargs: Any, dtype: str) -> tuple[Any, Any, Any]:
    """Model and floating-point inputs in one dtype; "" leaves them."""
    import torch

    if not dtype:
        return model, args, kwargs
    wanted = getattr(torch, dtype)

    def in_dtype(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(wanted) if value.is_floating_point() else value
        if isinstance(value, dict):
            return {key: in_dtype(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = map(in_dtype, value)
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return value

    if isinstance(model, torch.nn.Module):
        model = model.to(wanted)
    return model, in_dtype(args), in_dtype(kwargs)


def one_line(error: BaseException) -> str:
    inner = getattr(error, "inner_exception", error)  # Dynamo wraps what a backend raises
    return f"{type(inner).__name__}: {' '.join(str(inner).split())[:500]}"


_JOBS = {"sides": _sides, "plan": _plan, "measure": _measure}

if __name__ == "__main__":
    main()
