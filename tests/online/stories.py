"""A story: a model is called some times, then something happens to it, and it is called some times more.

`told` runs the story of a cell eagerly, with Inductor or with loka, and says what came out.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.online.columns import COLUMNS, Column
from tests.online.rows import RAW, ROWS, WIDTH, Act, Compile

RATE = 1e-3
"""Of a step: how much of its norm a parameter moves by."""
OPTIONS = {"recipes": ("int8_rowwise",), "min_speedup": 0, "race": False, "max_probe_overhead": 0.3}
"""Under which the little nets here are lowered on any processor, and measured again as soon as that may be."""
BACKENDS: dict[str, dict[str, Any]] = {
    "inductor": {"backend": "inductor"},
    "loka": {"backend": "loka", "options": OPTIONS},
}


@dataclass
class Story:
    """What came out: results of each call (outputs, then gradients), how often Dynamo compiled, what explain says.

    graphs: of each half. compiled: whether there is compiled code at the end. left_to_python: frames that Dynamo gave
    up, those of torch's own among them when they run for the first time.
    """

    results: list[list[Tensor]] = field(default_factory=list)
    graphs: list[int] = field(default_factory=list)
    compiled: bool = False
    left_to_python: int = 0
    failed: str = ""
    lowered: int = 0
    sites: int = 0
    origin: str = ""


def told(row: str, column: str, backend: str) -> Story:
    """The story of a cell by a backend, `eager` for none. Every telling begins with nothing compiled or remembered, and
    with one seed. LOKA_CACHE_DIR is a folder for this alone."""
    from torch._dynamo.utils import counters

    import loka_compile as loka

    how, story = COLUMNS[column], Story()
    torch.compiler.reset()
    shutil.rmtree(Path(os.environ["LOKA_CACHE_DIR"]) / "online", ignore_errors=True)  # what other cells demoted
    counters.clear()
    torch.manual_seed(0)
    act = None
    with how.within():
        try:
            for act in ROWS[row](how.prepare, _compiler(backend, how)):
                before = counters["stats"]["unique_graphs"]
                _tell(act, how, backend, story)
                story.graphs.append(counters["stats"]["unique_graphs"] - before)
                story.compiled = bool(story.graphs[-1]) or (story.compiled and not act.forgotten)
        except Exception as error:  # what is told of a crash is compared too
            story.failed = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        finally:
            torch.compiler.set_stance("default")
    story.left_to_python = counters["frames"]["total"] - counters["frames"]["ok"]
    if backend == "loka" and act is not None and not story.failed:
        try:
            explained = loka.explain(act.compiled)
        except ValueError as error:
            story.origin = str(error)
        except Exception as error:
            story.failed = f"explain: {type(error).__name__}: {error}"
        else:
            story.lowered, story.sites = len(explained.lowered), len(explained.found)
            story.origin = explained.origin
    return story


def _compiler(backend: str, how: Column) -> Compile:
    def compile(target: Any, in_place: bool = False) -> Any:
        if backend == "eager":
            return target
        given = {**BACKENDS[backend], "dynamic": how.dynamic}
        return target.compile(**given) if in_place else torch.compile(target, **given)

    return compile


def _tell(act: Act, how: Column, backend: str, story: Story) -> None:
    rank = dist.get_rank() if dist.is_initialized() else 0
    inputs = torch.Generator().manual_seed(1000 * rank + len(story.results))
    call = act.call if how.reentrant is None else lambda x: checkpoint(act.call, x, use_reentrant=how.reentrant)
    backward = Tensor.backward
    if how.compiled_backward and backend != "eager":
        backward = torch.compile(lambda loss: loss.backward(), **BACKENDS[backend])
    for step in range(how.calls):
        x = torch.randn(how.rows[step % len(how.rows)], WIDTH, generator=inputs)
        if act.raw:
            x[:, 0] *= RAW
        if how.unbacked:
            torch._dynamo.decorators.mark_unbacked(x, 0)
        x.requires_grad_(how.training)
        with torch.set_grad_enabled(how.training):
            out = call(x)
        results = [out.detach().clone()]
        if how.training:
            backward(out.square().mean())
            results += [_whole(each.grad) for each in (x, *act.net.parameters())]
            _step(act.net, RATE if act.learns and not act.raw else 0.0)
        story.results.append(results)
        torch.compiler.set_stance(how.stance)


@torch.no_grad()
def _step(net: nn.Module, rate: float) -> None:
    """Every parameter by so much of its norm, whatever its gradient's is."""
    for parameter in net.parameters():
        parameter -= rate * parameter.norm() / parameter.grad.norm() * parameter.grad
        parameter.grad = None


def _whole(gradient: Tensor) -> Tensor:
    return (gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient).detach().clone()
