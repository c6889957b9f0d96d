"""Ways to use torch.compile: who is compiled (a row) and how it is called (a column).

Every cell of the matrix is a story: a model is called some times, then something happens to it, and it is called some
times more. `told` runs the story eagerly, with Inductor or with loka, and says what came out.

    python -m tests.online.ranks [row or column ...]     prints the matrix
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTH = 512
"""So that a linear fills DistributedDataParallel's first bucket, of a megabyte, and the next one is another's."""
RAW = 3e4
"""Scale of a raw feature that a story's second parameters ignore: a plan made for the first ones is wrong there."""

# ---------------------------------------------------------------- models


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x))


class Net(nn.Module):
    """Some equal layers and a head."""

    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(depth))
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Scorer(nn.Module):
    """What serves a model: it is called by another name than forward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def score(self, x: Tensor) -> Tensor:
        return self.net(x)


def ignoring(net: Net) -> Net:
    """The net, having learned to ignore the raw feature."""
    with torch.no_grad():
        net.layers[0].fc.weight[:, 0] = 0
    return net


# ---------------------------------------------------------------- rows


@dataclass(frozen=True)
class Act:
    """Half a story: whose parameters these are, what is called, what loka may be asked about.

    raw: a feature of the inputs is. learns: steps are taken in training; where a raw feature is ignored, they would
    undo that.
    """

    net: nn.Module
    call: Callable[[Tensor], Tensor]
    compiled: Any
    raw: bool = False
    learns: bool = True


Prepare = Callable[[nn.Module], nn.Module]
Compile = Callable[[Any], Any]
Row = Callable[[Prepare, Compile], Iterator[Act]]


def module(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    net = prepare(Net())
    compiled = compile(net)
    yield Act(net, compiled, compiled)
    yield Act(net, compiled, compiled)


def method(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    scorer = Scorer(prepare(Net()))
    compiled = compile(scorer.score)
    yield Act(scorer, compiled, compiled)
    yield Act(scorer, compiled, compiled)


def function(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    net = prepare(Net())

    def score(x: Tensor) -> Tensor:
        return net(x) * 2

    compiled = compile(score)
    yield Act(net, compiled, compiled)
    yield Act(net, compiled, compiled)


def layer_by_layer(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    """Five equal layers; the fourth ignores what is raw for it, so that a plan of the first is wrong for it."""
    net = Net(5)
    with torch.no_grad():
        net.layers[2].fc.bias[0] = RAW
        net.layers[3].fc.weight[:, 0] = 0
    for layer in net.layers:
        compile(layer, in_place=True)
    whole = prepare(net)
    yield Act(whole, whole, net.layers[0], learns=False)
    yield Act(whole, whole, net.layers[0], learns=False)


def two_instances(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    first, second = prepare(Net()), prepare(ignoring(Net()))
    compiled, another = compile(first), compile(second)
    yield Act(first, compiled, compiled)
    yield Act(second, another, compiled, raw=True)


def deep_copy(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    net = prepare(Net())
    compiled = compile(net)
    yield Act(net, compiled, compiled)
    another = copy.deepcopy(compiled)
    _replace(another, lambda old, new: old.copy_(new))
    yield Act(another, another, compiled, raw=True)


def copied_weights(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    return _replaced(prepare, compile, lambda old, new: old.copy_(new))


def data_weights(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    def into_data(old: nn.Parameter, new: Tensor) -> None:
        old.data = new.detach().clone()

    return _replaced(prepare, compile, into_data)


def assigned_weights(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    net = prepare(Net())
    compiled = compile(net)
    yield Act(net, compiled, compiled)
    _plain(net).load_state_dict(ignoring(Net()).state_dict(), assign=True)
    yield Act(net, compiled, compiled, raw=True)


def reset(prepare: Prepare, compile: Compile) -> Iterator[Act]:
    net = prepare(Net())
    compiled = compile(net)
    yield Act(net, compiled, compiled)
    torch.compiler.reset()
    yield Act(net, compiled, compiled)


def _replaced(prepare: Prepare, compile: Compile, put: Callable[[Any, Tensor], None]) -> Iterator[Act]:
    net = prepare(Net())
    compiled = compile(net)
    yield Act(net, compiled, compiled)
    _replace(net, put)
    yield Act(net, compiled, compiled, raw=True)


def _replace(net: nn.Module, put: Callable[[Any, Tensor], None]) -> None:
    """Other weights, that ignore the raw feature, into the parameters of a net."""
    with torch.no_grad():
        for old, new in zip(net.parameters(), ignoring(Net()).parameters(), strict=True):
            put(old, _like(old, new))


def _like(old: Tensor, new: Tensor) -> Tensor:
    if not hasattr(old, "placements"):
        return new
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(new.detach(), old.device_mesh, old.placements)


def _plain(net: nn.Module) -> nn.Module:
    return net.module if isinstance(net, nn.parallel.DistributedDataParallel) else net


ROWS: dict[str, Row] = {
    "module": module,
    "method": method,
    "function": function,
    "five layers one by one": layer_by_layer,
    "two instances": two_instances,
    "deepcopy": deep_copy,
    "weights copied": copied_weights,
    "weights assigned": assigned_weights,
    "weights by .data": data_weights,
    "reset": reset,
}

# ---------------------------------------------------------------- columns


def _as_it_is(net: nn.Module) -> nn.Module:
    return net


def _ddp(net: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(net, bucket_cap_mb=1)  # every linear is a bucket


def _fsdp(net: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in net.layers:
        fully_shard(layer)
    return fully_shard(net)


@dataclass(frozen=True)
class Column:
    """How a story is told.

    rows: of its batches, one after the other. calls: in each half. left: the reason for which loka leaves it to
    Inductor, as explain says it; "" where it lowers. ranks: processes; 0 outside of torch.distributed. within: a
    context around all of it. stance: that of all calls but the first.
    """

    training: bool = False
    rows: tuple[int, ...] = (96,)
    calls: int = 6
    left: str = ""
    ranks: int = 0
    dynamic: bool | None = None
    unbacked: bool = False
    reentrant: bool | None = None
    compiled_backward: bool = False
    prepare: Prepare = _as_it_is
    within: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    stance: str = "default"
    twice: bool = False


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _dynamo_config(**settings: Any) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    return lambda: torch._dynamo.config.patch(**settings)


RATE = 1e-3
MANY = 130
"""Calls after which an online session may measure again (online.pace.AT_LEAST, and some)."""

COLUMNS: dict[str, Column] = {
    "inference": Column(),
    "training": Column(training=True, calls=MANY),
    "dynamic=True": Column(dynamic=True, rows=(96, 40, 64)),
    "dynamic=None": Column(rows=(96, 96, 96, 96, 40, 64)),
    "unbacked": Column(rows=(96, 40, 64), unbacked=True, left="unbacked"),
    "checkpoint": Column(training=True, calls=MANY, reentrant=False),
    "reentrant checkpoint": Column(training=True, calls=MANY, reentrant=True),
    "compiled autograd": Column(
        training=True, compiled_backward=True, within=_dynamo_config(compiled_autograd=True), left="compiled autograd",
    ),
    "DDP, 1 process": Column(training=True, ranks=1, prepare=_ddp),
    "DDP, 2 processes": Column(training=True, ranks=2, prepare=_ddp),
    "FSDP2, 2 processes": Column(training=True, ranks=2, prepare=_fsdp),
    "fail_on_recompile": Column(stance="fail_on_recompile"),
    "eager_on_recompile": Column(stance="eager_on_recompile"),
    "recompile limit 1": Column(within=_dynamo_config(recompile_limit=1)),
    "deterministic": Column(
        training=True, calls=MANY, within=_deterministic, twice=True, left="deterministic algorithms",
    ),
}  # fmt: skip

# ---------------------------------------------------------------- stories

OPTIONS = {"recipes": ("int8_rowwise",), "min_speedup": 0, "race": False, "max_probe_overhead": 0.3}
"""Under which the little nets here are lowered on any processor, and measured again as soon as that may be."""
BACKENDS: dict[str, dict[str, Any]] = {
    "inductor": {"backend": "inductor"},
    "loka": {"backend": "loka", "options": OPTIONS},
}


@dataclass
class Story:
    """What came out: results of each call (outputs, then gradients), how often Dynamo compiled, what explain says.

    left_to_python: frames that Dynamo gave up, those of torch's own among them when they run for the first time.
    """

    results: list[list[Tensor]] = field(default_factory=list)
    graphs: int = 0
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
                _tell(act, how, backend, story)
        except Exception as error:  # what is told of a crash is compared too
            story.failed = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        finally:
            torch.compiler.set_stance("default")
    story.graphs = counters["stats"]["unique_graphs"]
    story.left_to_python = counters["frames"]["total"] - counters["frames"]["ok"]
    if backend == "loka" and act is not None and not story.failed:
        try:
            explained = loka.explain(act.compiled)
        except ValueError as error:
            story.origin = str(error)
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


# ---------------------------------------------------------------- cells

OUTPUTS, GRADIENTS = 0.05, 0.15
"""Relative RMS errors against eager that are within the budget, of one graph: of its outputs, and of the worst of its
gradients (`max_output_error`; `max_gradient_error` is 0.1 over all of them)."""
IN_A_ROW = {"five layers one by one": 5}
"""Graphs that a call runs one behind the other, each within the budget."""


EAGER_BY_BOTH = {("reset", "eager_on_recompile")}
"""After a reset nothing is compiled any more under that stance, whatever the backend."""


@dataclass(frozen=True)
class Cell:
    """What a cell of the matrix shows: in a word, and what is wrong with it ("" if nothing)."""

    row: str
    column: str
    shows: str
    wrong: str = ""


def cell(row: str, column: str) -> Cell:
    """Tell the story three times, and compare."""
    eager, inductor, loka = (told(row, column, backend) for backend in ("eager", "inductor", "loka"))
    if inductor.failed or eager.failed:
        kind = (inductor.failed or eager.failed).partition(":")[0]
        same = loka.failed.startswith(kind)
        return Cell(row, column, f"{kind} by both", "" if same else f"{inductor.failed}, by loka: {loka.failed}")
    if loka.failed:
        return Cell(row, column, "crash", loka.failed)
    how, wrong = COLUMNS[column], []
    for name, bound in (("outputs", OUTPUTS), ("gradients", GRADIENTS)):
        error, allowed = worst(loka.results, eager.results, name), bound * IN_A_ROW.get(row, 1) ** 0.5
        if not error <= allowed:
            wrong.append(f"{name} are {error:.3g} off, budget {allowed:.3g}")
    if loka.graphs != inductor.graphs or loka.left_to_python > inductor.left_to_python:
        counts = [f"{each.graphs} graphs, {each.left_to_python} frames left to Python" for each in (loka, inductor)]
        wrong.append(f"Dynamo made {counts[0]}; for Inductor {counts[1]}")
    if how.left and (loka.lowered or how.left not in loka.origin):
        wrong.append(f"expected it left to Inductor ({how.left}), got {loka.lowered} lowered, {loka.origin}")
    if not how.left and not loka.lowered and (row, column) not in EAGER_BY_BOTH:
        wrong.append(f"nothing of {loka.sites} sites is lowered: {loka.origin}")
    if how.twice and not equal(told(row, column, "loka").results, loka.results):
        wrong.append("told twice, other numbers come out")
    shows = f"{loka.lowered} of {loka.sites}" if loka.lowered else "Inductor"
    return Cell(row, column, shows, "; ".join(wrong))


def worst(results: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]], what: str) -> float:
    """The worst relative RMS error of all outputs, or of all gradients; infinite where one is not finite."""
    part = slice(0, 1) if what == "outputs" else slice(1, None)
    pairs = [p for a, b in zip(results, expected, strict=True) for p in zip(a[part], b[part], strict=True)]
    errors = [float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs]
    return max((error if math.isfinite(error) else math.inf for error in errors), default=0.0)


def equal(results: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]]) -> bool:
    pairs = [p for a, b in zip(results, expected, strict=True) for p in zip(a, b, strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)
