"""Writes in place, of every kind, into whatever is there: inputs, buffers, temporaries of a pattern, views of them."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.fuzz.build import Builder, Unfit

WHOLE = (
    "{t}.add_(1)",
    "{t}.mul_(0.5)",
    "{t}.relu_()",
    "{t} += 1",
    "{t} *= 0.5",
    "{t} -= 0.25",
    "{t}.zero_()",
    "{t}.clamp_(-0.5, 0.5)",
    "{t}.sigmoid_()",
    "{t}.copy_({t}.flip(0))",
    "F.relu({t}, inplace=True)",
    "torch.add({t}, 1, out={t})",
    "torch.mul({t}, 0.5, out={t})",
    "torch.sigmoid({t}, out={t})",
    "{t}.fill_(0.5)",
    "torch.relu_({t})",
    "{t}.neg_()",
    "{t}.div_(2)",
    "F.silu({t}, inplace=True)",
    "{t}.tanh_()",
    "{t}.detach().add_(1)",
    "{t}.lerp_({t}.flip(0), 0.5)",
    "{t}.addcmul_({t}.flip(0), {t}.flip(0), value=0.1)",
    "{t}.square_()",
    "F.dropout({t}, 0.5, {training}, inplace=True)",
    "{t}.set_({t}.clone())",
    "torch.abs({t}, out={t})",
)
PARTS = (
    "{t}[0] = 5.0",
    "{t}[..., 1:3] = 0.5",
    "{t}[{t} > 0.5] = 0.25",
    "{t}[1:] *= 2",
    "{t}[-1].add_(1)",
    "{t}.masked_fill_({t} > 0.5, 0.25)",
    "{t}.index_put_((torch.tensor([0, 1]),), torch.tensor(2.0, dtype={t}.dtype))",
    "{t}.select(0, 1).mul_(3)",
    "{t}.narrow(-1, 0, 2).zero_()",
    "{t}[::2] = {t}[::2].flip(0)",
    "{t}[:, 0] = 1.5",
    "{t}.index_fill_(0, torch.tensor([1]), 0.5)",
    "{t}.index_add_(0, torch.tensor([0]), {t}[1:2].clone())",
    "{t}[torch.tensor([0, 2])] = -1.0",
    "{t}[..., -1] += 1",
    "{t}.scatter_(0, torch.zeros_like({t}[:1], dtype=torch.long), 0.5)",
    "{t}[:2, ...] = {t}[-2:, ...].clone()",
    "torch.add({t}[0], 1, out={t}[0])",
    "{t}.masked_fill_({t}.isnan() | ({t} < -0.5), 0.0)",
)
THROUGH = (
    "{t}.view(-1)",
    "{t}[1:]",
    "{t}.transpose(0, -1)",
    "{t}.unsqueeze(0)",
    "{t}.flatten()",
    "{t}.narrow(0, 0, 2)",
    "{t}.detach()",
    "{t}.reshape(-1)",
    "{t}[:, :2]",
    "{t}.mT",
    "{t}.T",
    "{t}.chunk(2, -1)[0]",
    "{t}.unbind(0)[0]",
    "{t}.select(-1, 0)",
    "{t}.permute(*reversed(range({t}.dim())))",
    "{t}.split(2)[0]",
    "{t}.squeeze()",
    "{t}.view_as({t})",
    "{t}.diagonal()",
    "{t}.contiguous()",
    "{t}.to({t}.dtype)",
    "{t}.unflatten(-1, (2, -1))",
    "{t}.expand_as({t})",
    "{t}[None]",
    "{t}.movedim(0, -1)",
    "{t}.as_strided((4,), (2,))",
    "{t}.data",
    "{t}.clone()",
)


def write(b: Builder, name: str) -> None:
    """A write into the tensor, or into one that is chosen among the latest."""
    how, view = b.pick(4), b.pick(len(THROUGH))
    target = name or _target(b)
    b.features.add("writes")
    b.features |= {"writes into inputs"} if target in b.inputs else set()
    if how == 3:
        if b.training and "data" in THROUGH[view]:
            raise Unfit  # autograd would not notice, and give what is saved by whoever runs
        target = b.let(THROUGH[view].format(t=target), "v")
        b.unread = [each for each in b.unread if each != target]
        b.features.add("writes through views")
    kinds = PARTS if b.pick(2) else WHOLE
    b.run(kinds[b.pick(len(kinds))].format(t=target, training=b.training))
    _not_read(b, target)


def _target(b: Builder) -> str:
    found = [name for name in reversed(b.live) if b.value(name).is_floating_point()]
    if not found:
        raise Unfit
    return found[b.pick(min(len(found), 5))]


def _not_read(b: Builder, name: str) -> None:
    """A write is no use: what is written still wants a reader."""
    if name in b.live and name not in b.inputs and name not in b.unread:
        b.unread.append(name)


def write_step(b: Builder) -> None:
    write(b, "")


def write_input(b: Builder) -> None:
    write(b, b.input())


def buffers(b: Builder) -> None:
    """A buffer that is read, updated and read again; a queue; running statistics. The backward may compute once more
    what was read of it, when it is another one."""
    x = b.tensor(is_rows)
    width, dtype = b.value(x).shape[-1], b.value(x).dtype
    like = f"{width}, dtype={dtype}" if dtype != torch.float32 else f"{width}"
    buffer = b.buffer(f"torch.ones({like})")
    y = b.let(
        b.of(
            f"{x} * {buffer}",
            f"{x} * ({buffer} * 2).sin()",
            f"({x} - {buffer}) * torch.rsqrt({buffer} * {buffer} + 1)",
            f"{x} * {buffer}.exp()",
        )
    )
    mean = f"{x}.detach().flatten(0, -2).mean(0)"
    b.run(
        b.of(
            f"{buffer}.add_(1)",
            f"{buffer}.copy_({mean})",
            f"{buffer}[0] = 2.0",
            f"{buffer}.mul_(0.9)",
            f"{buffer}.lerp_({mean}, 0.1)",
            f"{buffer}.mul_(0.9).add_({mean}, alpha=0.1)",
            f"{buffer}.data.add_(1)",
            f"torch.add({buffer}, 1, out={buffer})",
            f"{buffer} += 1",
        )
    )
    b.features.add("writes")
    b.let(
        b.of(
            f"{y} * {buffer}",
            f"{y} + {buffer}",
            f"{x} * {buffer} + {y}",
            f"{y} * torch.rsqrt({buffer}.pow(2).mean(-1, keepdim=True) + 1e-6)",
        )
    )


def queue(b: Builder) -> None:
    """The latest rows go into a buffer, which is read before and afterwards."""
    x = b.tensor(lambda t: t.is_floating_point() and t.dim() == 2 and t.shape[0] >= 4)
    width, dtype = b.value(x).shape[-1], b.value(x).dtype
    kept = b.buffer(f"torch.ones(8, {width}, dtype={dtype})")
    scores = b.let(f"{x} @ {kept}.t()")
    b.run(
        b.of(f"{kept}[:4] = {x}[:4].detach()", f"{kept}[4:] = {kept}[:4].clone()", f"{kept}.copy_({kept}.roll(1, 0))")
    )
    b.features.add("writes")
    b.let(b.of(f"{scores}.softmax(-1) @ {kept}", f"{scores} @ {kept} * 0.1", f"{scores} + {x} @ {kept}.t()"))


def is_rows(t: Tensor) -> bool:
    return t.is_floating_point() and t.dim() >= 2


STEPS = {"write": (write_step, 5), "write_input": (write_input, 3), "buffers": (buffers, 3), "queue": (queue, 1)}
