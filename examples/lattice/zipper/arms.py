"""What is compared: Zipper, each single window, their ensemble, FNW, ES-DFM, and an oracle that sees the future.

The protocol is that of the streaming literature (test, then train). All arms start from one model, trained on the first
part of the stream with labels that were complete at its end. Then the clock moves on: an impression is predicted when
it happens, by a model that has trained on whatever its arm's stream had released strictly before, so that of what
shares a time (CDNOW's times are whole days) all is predicted before any is learned. All are judged by the label of the
longest window, on the same rows: those whose longest window closes within the log. Of later rows the log does not know
the label, nor does the oracle.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from examples.lattice.data import DataError
from examples.lattice.zipper import model, schedules
from examples.lattice.zipper.joiner import Joiner, Released
from examples.lattice.zipper.log import Log, before
from examples.lattice.zipper.model import Heads, NestedHeads
from examples.lattice.zipper.stream import Source, Stream
from examples.lattice.zipper.windows import Windows

PRETRAINED, VANILLA, FNW, ES_DFM, ENSEMBLE, EVEN, ZIPPER, NESTED, ORACLE = (
    "pretrained, then fixed",
    "vanilla",
    "FNW",
    "ES-DFM",
    "ensemble of windows",
    "Zipper, even shares",
    "Zipper",
    "Zipper, nested heads",
    "oracle (sees the future)",
)


NOTHING_YET = float("-inf")


@dataclass(frozen=True, eq=False)
class Problem:
    """A log and the features of its impressions; rows before `start` are for pretraining.

    end: when the log ends, in its seconds. A label whose longest window closes later is censored: nobody knows it. inf
    where labels are drawn, and none is censored."""

    name: str
    log: Log
    ids: Tensor
    bag: Tensor
    cardinalities: tuple[int, ...]
    bags: int
    windows: Windows
    start: int
    end: float

    def __post_init__(self) -> None:
        if self.start >= self.stop:
            raise DataError(
                f"{self.name} has no row to judge: of {len(self.log)} rows {self.stop}, the first, have windows of "
                f"{self.windows.longest:g} s that close until the log ends, and the stream starts with row "
                f"{self.start}: give a longer log, or shorter windows"
            )

    @property
    def opening(self) -> float:
        """When the stream starts: the last moment before its first row."""
        return before(float(self.log.times[self.start]))

    @property
    def mature(self) -> int:
        """How many rows, the first, had their longest window closed by then."""
        return self._closed(self.opening)

    @property
    def stop(self) -> int:
        """How many rows, the first, have a longest window that closes within the log; no other is judged."""
        return self._closed(self.end)

    def labels(self) -> Tensor:
        """What all arms are judged by, for the rows from `start` to `stop`."""
        return (self.log.delays()[self.start : self.stop] <= self.windows.longest).float()

    def _closed(self, by: float) -> int:
        return int(torch.searchsorted(self.log.times + self.windows.longest, by, right=True))


@dataclass(frozen=True)
class Settings:
    chunk: int = 128  # impressions that are predicted together
    batch: int = 128
    rate: float = 1e-3
    epochs: int = 2  # of pretraining


def run(problem: Problem, settings: Settings, seed: int) -> dict[str, Tensor]:
    """Logits by arm for the rows from `start` to `stop`."""
    torch.manual_seed(seed)
    windows, log = problem.windows, problem.log
    first, helper = _fresh(problem, len(windows)), _fresh(problem, 2)
    _pretrain(problem, settings, first, helper)
    last = len(windows) - 1
    found = {
        PRETRAINED: _test_then_train(
            problem, settings, first, schedules.single(log.until(NOTHING_YET), windows.longest, last), last
        )
    }
    for head, window in enumerate(windows.seconds):
        schedule = schedules.single(log, window, head)
        found[window_name(window)] = _test_then_train(problem, settings, first, schedule, head)
    chances = [found[window_name(window)].double().sigmoid() for window in windows.seconds]
    found[ENSEMBLE] = torch.stack(chances).mean(0).logit().float()
    wait = windows.seconds[0]
    for name, schedule, loss in (
        (VANILLA, schedules.elapsed(log, wait, windows.longest, last), model.plain),
        (FNW, schedules.immediate(log, windows.longest, last), model.fnw),
        (ORACLE, schedules.future(log, windows.longest, last, problem.end), model.plain),
    ):
        found[name] = _test_then_train(problem, settings, first, schedule, last, loss)
    found[ES_DFM] = _es_dfm(problem, settings, first, helper)
    seeded = Windows(windows.seconds, windows.shares, seed)
    found[EVEN] = _test_then_train(problem, settings, first, Joiner(log, Windows(windows.seconds, (), seed)), last)
    found[ZIPPER] = _test_then_train(problem, settings, first, Joiner(log, seeded), last)
    nested = NestedHeads(problem.cardinalities, problem.bags, len(windows))
    _pretrain(problem, settings, nested, _fresh(problem, 2))
    found[NESTED] = _test_then_train(problem, settings, nested, Joiner(log, seeded), last)
    return found


def window_name(seconds: float) -> str:
    """'window 1.5 h', 'window 7 d'."""
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"window {seconds / size:g} {unit}"
    return f"window {seconds:g} s"


def _fresh(problem: Problem, heads: int) -> Heads:
    return Heads(problem.cardinalities, problem.bags, heads)


def _pretrain(problem: Problem, settings: Settings, first: Heads, helper: Heads) -> None:
    """On the rows whose longest window had closed when the stream starts: `first` learns every window's label,
    `helper` ES-DFM's two. Where none had closed (a rehearsal on few rows), both stay as they are."""
    if not problem.mature:
        return
    delays = problem.log.until(problem.opening).delays()[: problem.mature]
    within = _within(delays, problem.windows)
    delayed, real = _helper_labels(delays, problem.windows)
    optimizer = torch.optim.Adam([*first.parameters(), *helper.parameters()], settings.rate, fused=True)
    for _ in range(settings.epochs):
        for part in torch.randperm(problem.mature).split(settings.batch):
            inputs = problem.ids[part], problem.bag[part]
            loss = _all_windows(first, inputs, within[part]) + _helper_loss(helper(*inputs), delayed[part], real[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _within(delays: Tensor, windows: Windows) -> Tensor:
    """(N, K) bool: converted within each window."""
    return delays[:, None] <= torch.tensor(windows.seconds, dtype=torch.float64)


def _all_windows(module: Heads, inputs: tuple[Tensor, Tensor], within: Tensor) -> Tensor:
    """The loss of impressions whose windows have all closed."""
    if not isinstance(module, NestedHeads):
        return model.plain(module(*inputs), within.float())
    longest = torch.full((len(within),), within.shape[1] - 1)
    return model.nested(module.scores(*inputs), longest, within[:, -1].float(), within)


def _helper_labels(delays: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """Converted after the wait; never converted, nan where it had converted before the wait was over."""
    wait = windows.seconds[0]
    late = (delays > wait) & (delays <= windows.longest)
    return late.float(), (delays > windows.longest).float().masked_fill(delays <= wait, float("nan"))


def _helper_loss(logits: Tensor, delayed: Tensor, real: Tensor) -> Tensor:
    known = ~real.isnan()
    loss = model.plain(logits[:, 0], delayed)
    return loss + model.plain(logits[known, 1], real[known]) if bool(known.any()) else loss


def _test_then_train(
    problem: Problem,
    settings: Settings,
    first: Heads,
    source: Released | Source,
    head: int,
    loss: Callable[[Tensor, Tensor], Tensor] = model.plain,
) -> Tensor:
    """Logits of one arm that takes a copy of `first` along its stream. loss: of the assigned heads' logits; nested
    heads have one of their own."""
    module = copy.deepcopy(first)

    def of(samples: Released) -> Tensor:
        inputs = problem.ids[samples.rows], problem.bag[samples.rows]
        if isinstance(module, NestedHeads):
            within = _within(samples.delays, problem.windows)
            return model.nested(module.scores(*inputs), samples.heads, samples.labels, within)
        return loss(module(*inputs).gather(1, samples.heads[:, None]).squeeze(1), samples.labels)

    return _follow(problem, settings, [_stream(problem, settings, source, module, of)], module, head)


def _es_dfm(problem: Problem, settings: Settings, first: Heads, helper: Heads) -> Tensor:
    """The helper goes on learning from impressions whose longest window has closed; the model uses it as it is then."""
    module, aide = copy.deepcopy(first), copy.deepcopy(helper)
    windows, last = problem.windows, len(problem.windows) - 1
    delays = problem.log.delays()  # asked only for rows whose longest window has closed
    wait = windows.seconds[0]

    def of(samples: Released) -> Tensor:
        inputs = problem.ids[samples.rows], problem.bag[samples.rows]
        with torch.no_grad():
            delayed, real = aide(*inputs).sigmoid().T
        return model.es_dfm(module(*inputs)[:, last], samples.labels, delayed, real)

    def of_helper(samples: Released) -> Tensor:
        labels = _helper_labels(delays[samples.rows], windows)
        return _helper_loss(aide(problem.ids[samples.rows], problem.bag[samples.rows]), *labels)

    mature = schedules.single(problem.log, windows.longest, 0)
    schedule = schedules.elapsed(problem.log, wait, windows.longest, last)
    streams = [
        _stream(problem, settings, mature, aide, of_helper),
        _stream(problem, settings, schedule, module, of),
    ]
    return _follow(problem, settings, streams, module, last)


def _stream(
    problem: Problem,
    settings: Settings,
    source: Released | Source,
    module: Heads,
    loss: Callable[[Released], Tensor],
) -> Stream:
    """A stream that begins where pretraining ended, with what was released but not learned by then."""
    if isinstance(source, Released):
        source = schedules.Replay(source)
    stream = Stream(source, module, loss, settings.batch, settings.rate)
    released = source.advance(problem.opening)
    stream.waiting = released[released.rows >= problem.mature]
    return stream


def _follow(problem: Problem, settings: Settings, streams: list[Stream], module: Heads, head: int) -> Tensor:
    """Moves the clock chunk by chunk: streams train on what was released before the chunk's first row happened, then
    the chunk is predicted."""
    found = []
    for rows in torch.arange(problem.start, problem.stop).split(settings.chunk):
        now = before(float(problem.log.times[rows[0]]))
        for stream in streams:
            stream.until(now)
        with torch.no_grad():
            found.append(module(problem.ids[rows], problem.bag[rows])[:, head])
    return torch.cat(found)
