"""From plain data to Python source: every line is run as it is written, so that what follows knows what it can read.

The namespace holds real tensors. A line that PyTorch refuses is left out, and the part it belongs to ends there; shapes
and dtypes are asked of the tensors, so no rule of any operator is repeated here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.fuzz.program import Program, Step, Write

DTYPES = (torch.float32, torch.bfloat16, torch.float32, torch.float16, torch.bfloat16, torch.float64)
NAME = re.compile(r"(?<![\w.])[a-z]\w*")


class Unfit(Exception):
    """The part does not fit where it stands."""


class Builder:
    """What is written so far, and the tensors that its lines gave."""

    def __init__(self, program: Program) -> None:
        head = program.head.ljust(12, b"\0")
        self.dtype = DTYPES[head[0] % len(DTYPES)]
        self.training, self.writes_allowed, self.dynamic = head[1] % 2 == 1, head[2] % 8 >= 3, head[3] % 4 == 3
        self.batch, self.tokens, self.width = (
            (6, 16, 5, 16, 7)[head[4] % 5],
            (3, 4, 11)[head[5] % 3],
            (16, 32)[head[6] % 2],
        )
        self.ending = head[7:]
        self.module = nn.Module().train(self.training)
        self.names: dict[str, Any] = {"torch": torch, "nn": nn, "F": nn.functional, "self": self.module}
        self.names |= {"batch": self.batch, "checkpoint": checkpoint}
        self.init: list[str] = []
        self.body: list[str] = []
        self.classes: list[str] = []
        self.inputs: dict[str, str] = {}
        self.live: list[str] = []
        self.unread: list[str] = []
        self.features: set[str] = set()
        self.indent, self.numbers = 0, 0
        self.picks: list[int] = []
        self.pending: list[Write] = []
        self.lines = 0
        self.writing: Callable[[Builder, str], None] | None = None

    # ------------------------------------------------------------ choosing

    def pick(self, n: int) -> int:
        """The next choice, of n; the plainest once there are none left."""
        return self.picks.pop(0) % n if self.picks else 0

    def of(self, *options: Any) -> Any:
        return options[self.pick(len(options))]

    def chance(self, percent: int) -> bool:
        return bool(self.picks) and self.picks.pop(0) >= 256 * (100 - percent) / 100

    def tensor(self, fits: Callable[[Tensor], bool]) -> str:
        """A tensor that fits, mostly one of the latest that nobody has read."""
        found = [name for name in reversed(self.live) if fits(self.names[name])]
        found.sort(key=lambda name: name not in self.unread)
        if not found:
            raise Unfit
        place = self.picks.pop(0) if self.picks else 0
        return found[0] if place < 160 else found[(place - 160) % len(found)]

    def input(self) -> str:
        """An input of floats."""
        return self.tensor(lambda t: t.is_floating_point() and any(t is self.names[name] for name in self.inputs))

    def value(self, name: str) -> Any:
        return self.names[name]

    # ------------------------------------------------------------ writing

    def run(self, line: str) -> None:
        """A line of the forward, where PyTorch takes it."""
        try:
            exec(line, self.names)
        except Exception as error:
            raise Unfit from error
        self.body.append("    " * self.indent + line)
        left, _, right = line.partition(" = ")
        read = set(NAME.findall(right if left.isidentifier() else line))
        self.unread = [name for name in self.unread if name not in read]
        self.lines += 1
        self._write_between()

    def let(self, expression: str, hint: str = "h") -> str:
        """A new name for what the expression gives."""
        name = self.fresh(hint)
        due, self.pending = self.pending, []  # after the name is known
        try:
            self.run(f"{name} = {expression}")
        finally:
            self.pending = due
        self.know(name)
        self._write_between()
        return name

    def know(self, name: str) -> None:
        if isinstance(self.names[name], Tensor):
            if self.names[name].numel() > 50_000:
                raise Unfit
            self.live.append(name)
            self.unread.append(name)

    def fresh(self, hint: str) -> str:
        self.numbers += 1
        return f"{hint}{self.numbers}"

    def add_input(self, hint: str, expression: str) -> str:
        name = self.fresh(hint)
        try:
            self.names[name] = eval(expression, self.names)
        except Exception as error:
            raise Unfit from error
        self.inputs[name] = expression
        self.live.append(name)
        return name

    def declare(self, expression: str, hint: str, reuse: bool = False) -> str:
        """`self.hint3`, a module, a parameter or a buffer; with `reuse` one that was declared in the same way."""
        for line in self.init if reuse else ():
            target, _, made = line.partition(" = ")
            if made == expression:
                self.features.add("shared")
                return target
        name = self.fresh(hint)
        try:
            value = eval(expression, self.names)
        except Exception as error:
            raise Unfit from error
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            self.module.register_buffer(name, value)
            self.init.append(f'self.register_buffer("{name}", {expression})')
        else:
            setattr(self.module, name, value)
            self.init.append(f"self.{name} = {expression}")
        return f"self.{name}"

    def define(self, text: str) -> None:
        """A class, or a function of the module, in front of the forward."""
        exec(text, self.names)
        self.classes += [*text.splitlines(), "", ""]

    def buffer(self, expression: str) -> str:
        self.features.add("buffers")
        return self.declare(expression, "buffer")

    @contextlib.contextmanager
    def under(self, header: str) -> Iterator[None]:
        """Lines under a `with`."""
        manager = eval(header, self.names)
        self.body.append("    " * self.indent + f"with {header}:")
        self.indent += 1
        before = len(self.body)
        try:
            with manager:
                yield
        finally:
            if len(self.body) == before:
                self.body.append("    " * self.indent + "pass")
            self.indent -= 1

    def _write_between(self) -> None:
        """The writes that are due behind this line."""
        due = [write for write in self.pending if write.at <= self.lines]
        if not due or self.writing is None:
            return
        self.pending = [write for write in self.pending if write not in due]
        rest, self.picks = self.picks, []
        waiting, self.pending = self.pending, []
        for write in due:
            self.picks = list(write.picks)
            with contextlib.suppress(Unfit):
                self.writing(self, "")
        self.picks, self.pending = rest, waiting

    # ------------------------------------------------------------ a step, and the whole

    def step(self, step: Step, part: Callable[[Builder], None]) -> None:
        self.picks, self.lines = list(step.picks), 0
        self.pending = list(step.writes) if self.writes_allowed else []
        with contextlib.suppress(Unfit):
            part(self)
        self.pending = []

    def differentiates(self, expressions: Sequence[str] = ()) -> bool:
        """Whether autograd gives the gradients of these, or of what nobody has read."""
        if not self.training:
            return True
        leaves = [x for x in (*(self.names[name] for name in self.inputs), *self.module.parameters()) if x.is_leaf]
        leaves = [x for x in leaves if x.requires_grad]
        try:
            made = [eval(each, self.names) for each in expressions or self.unread]
            sums = [each.float().sum() for each in made if each.is_floating_point() and each.requires_grad]
            if sums and leaves:
                torch.autograd.grad(sum(sums), leaves, retain_graph=True, allow_unused=True)
        except RuntimeError:
            return False
        return True

    def result(self) -> str:
        """What the forward returns: what nobody has read, sometimes more."""
        plain = self._results()[0]
        both = [*plain, *self._results()[1]]
        return ", ".join(both if self.differentiates(both) else plain)

    def _results(self) -> tuple[list[str], list[str]]:
        self.picks = list(self.ending)
        more: list[str] = []
        names = [name for name in self.unread if name not in self.inputs and self.names[name].dtype != torch.bool]
        names = names[-4:] or self.live[-1:]
        if self.chance(15):
            view = self.of("{0}[1:]", "{0}.view(-1)", "{0}", "{0}.detach()", "{0}.transpose(0, -1)")
            inputs = [name for name in self.inputs if self.names[name].is_floating_point()]
            expression = view.format(inputs[self.pick(len(inputs))])
            with contextlib.suppress(Exception):
                eval(expression, self.names)
                more.append(expression)
        if self.chance(15):
            again = self.live[self.pick(len(self.live))]
            more += [again] if again not in names else []
        return names, more

    def source(self, result: str) -> str:
        init = self.init or ["pass"]
        lines = [
            "import torch",
            "from torch import nn",
            "from torch.nn import functional as F",
            *(["from torch.utils.checkpoint import checkpoint"] if any("checkpoint" in x for x in self.body) else []),
            "",
            "",
            *self.classes,
            "class Net(nn.Module):",
            "    def __init__(self):",
            "        super().__init__()",
            *(f"        {line}" for line in init),
            "",
            f"    def forward(self, {', '.join(self.inputs)}):",
            *(f"        {line}" for line in self.body),
            f"        return {result}",
            "",
            "",
            f"def inputs(batch={self.batch}):",
            *(f"    {name} = {expression}" for name, expression in self.inputs.items()),
            f"    return [{', '.join(self.inputs)}]",
            "",
            "",
            f"TRAINING = {self.training}",
            f"DYNAMIC = {self.dynamic}",
            "",
        ]
        return "\n".join(lines)
