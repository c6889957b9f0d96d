"""Is a program the same after a pass? It is compiled by Dynamo, and every graph is judged when it is called (judge.py).

Eager mode runs beside Dynamo's own graphs, so that a difference of Dynamo's is not counted as one of a pass.
"""

from __future__ import annotations

import copy
import re
import types
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.fuzz import twins
from tests.fuzz.judge import Choice, Judge, Verdict
from tests.fuzz.values import differ, new_in_float64
from tests.fuzz.wide import EpsOf

LARGER = 19
"""Rows of a second call, where sizes are dynamic."""


def check(source: str, choices: tuple[Choice, ...] = (), again: bool = False) -> Verdict:
    """choices: what is judged; where none are given, some of all there is, which depends on the program. again: what is
    lowered is compared with AOTAutograd's own graph, of which random numbers may be others than eager mode's."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # memory that nobody has written is NaN, and not compared
    try:
        return _checked(source, choices, again)
    finally:
        torch.use_deterministic_algorithms(before)


def _checked(source: str, choices: tuple[Choice, ...], again: bool) -> Verdict:
    verdict, program, number = Verdict(), load(source), zlib.crc32(source.encode())
    choices = choices or (Choice.of(number, program.TRAINING, program.DYNAMIC),)
    judge = Judge(verdict, number, choices, tuple(re.findall(r"self\.(blocks\d+) =", source)), again)
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, first = program.Net().train(program.TRAINING), program.inputs()
    calls = [first, program.inputs(LARGER)] if program.DYNAMIC else [first]
    with torch.set_grad_enabled(program.TRAINING):
        compiled = torch.compile(model, backend=judge.backend, dynamic=program.DYNAMIC or None)
        for args in calls:
            before = copy.deepcopy(model), _again(args)
            try:
                wanted = _call(copy.deepcopy(model), _again(args))
            except Exception as error:
                verdict.unsaid = "" if verdict.graphs else f"eager refuses it: {error}"
                break
            try:
                found = _call(compiled, args)
            except Exception as error:
                verdict.unsaid = f"not judged: {type(error).__name__}: {str(error)[:200]}"
                break
            if not _equal(found, wanted):
                verdict.notes["Dynamo's graph differs from eager mode"] += 1
            if verdict.graphs == 1 and args is first:
                _skips(source, *before, judge)
    return _checked(source, choices, again=True) if judge.unsure and not again else verdict


def load(source: str) -> types.ModuleType:
    module = types.ModuleType("program")
    exec(compile(source, "<program>", "exec"), module.__dict__)
    return module


def tensors(outs: Any) -> list[Tensor]:
    return [each for each in (outs if isinstance(outs, tuple | list) else (outs,)) if isinstance(each, Tensor)]


def _call(model: Any, args: Sequence[Any]) -> list[Tensor]:
    torch.manual_seed(3)
    return tensors(model(*args))


def _again(args: Sequence[Any]) -> list[Any]:
    """The same once more: what shares memory does so in the copy."""
    if not any(x.requires_grad for x in args):
        return copy.deepcopy(list(args))
    return [x.detach().clone().requires_grad_(x.requires_grad) for x in args]


def _equal(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return len(found) == len(wanted) and all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) if a.is_floating_point() else torch.equal(a, b)
        for a, b in zip(found, wanted, strict=True)
    )


def _skips(source: str, model: nn.Module, args: Sequence[Any], judge: Judge) -> None:
    """The graphs without some branches against the program's modules without them, in float64."""
    if not judge.skips:
        return
    written_in = torch.float64 if "torch.float64" in source else torch.float32
    source = re.sub(r"torch\.b?float(16|32)", "torch.float64", source)
    wide = load(re.sub(r"\.(float|half|bfloat16)\(\)", ".double()", source))

    @new_in_float64()
    def outputs(done: Any = None, stack: str = "") -> list[Tensor]:
        twin = wide.Net().double().train(model.training)
        twin.load_state_dict(copy.deepcopy(model).double().state_dict())
        if done is not None:
            twins.skip_modules(twin, stack, done)
        torch.manual_seed(1)
        doubles = [x.detach().double() if x.is_floating_point() else x for x in args]
        given = (x.clone().requires_grad_(of.requires_grad) for x, of in zip(doubles, args, strict=True))
        with EpsOf(written_in):
            return tensors(twin(*given))

    plain, own = outputs(), judge.results[""]
    if differ(plain, own[: len(plain)]):
        judge.verdict.notes["the program in float64 is another one"] += 1
        return
    for stack, done in judge.skips:
        wanted = outputs(done, stack)
        if reason := differ(judge.results[stack][: len(wanted)], wanted):
            judge.verdict.wrong["compskip"] = reason
