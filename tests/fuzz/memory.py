"""Parts of memory that are written and read again: pieces of a tensor, rows by index, state that lives between graph
breaks, bags with weights, branches in the graph."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.fuzz import norms
from tests.fuzz.build import Builder


def even(t: Tensor) -> bool:
    return t.is_floating_point() and t.dim() >= 2 and t.shape[-1] % 2 == 0


def pieces(b: Builder) -> None:
    """A tensor in pieces, one of which may be written, put together again."""
    x = b.tensor(even)
    n = b.value(x).shape[-1]
    p, q = b.fresh("p"), b.fresh("q")
    b.run(
        f"{p}, {q} = "
        + b.of(
            f"{x}.chunk(2, -1)",
            f"{x}.split({n // 2}, -1)",
            f"torch.tensor_split({x}, 2, -1)",
            f"({x}[..., ::2], {x}[..., 1::2])",
            f"{x}.unflatten(-1, (2, -1)).unbind(-2)",
            f"({x}.narrow(-1, 0, {n // 2}), {x}.narrow(-1, {n // 2}, {n // 2}))",
        )
    )
    b.know(p)
    b.know(q)
    if b.writes_allowed and b.chance(50):
        b.features |= {"writes", "writes through views"}
        b.run(
            b.of(
                f"{p}.mul_({q})",
                f"{p} += 1",
                f"{q}[..., 0] = 0.5",
                f"{p}.copy_({q}.detach())",
                f"{q}.relu_()",
                f"torch.add({p}, {q}, out={p})",
                f"{x}.mul_(2)",
            )
        )
    b.let(
        b.of(
            f"{p} * torch.sigmoid({q})",
            f"torch.cat([{q}, {p}], -1)",
            f"F.silu({p}) * {q}",
            f"{x}[..., :1] * {p}",
            f"torch.cat([-{q}, {p}], -1) * {x}",
            f"torch.stack([{p}, {q}], -1).flatten(-2) + {x}",
        ),
        "h",
    )


def filled(b: Builder) -> None:
    """An empty tensor that is filled part by part, or through `out=`."""
    x = b.tensor(lambda t: t.is_floating_point() and t.dim() == 2)
    n = b.value(x).shape[-1]
    both = b.let(b.of(f"{x}.new_empty({x}.shape[0], {2 * n})", f"{x}.new_zeros({x}.shape[0], {2 * n})"), "f")
    b.features.add("writes")
    layer = b.declare(f"nn.Linear({n}, {n}{norms.typed(b, x)})", "linear")
    b.run(
        b.of(
            f"{both}[:, :{n}] = {layer}({x})",
            f"{both}[:, :{n}].copy_({layer}({x}))",
            f"torch.mul({x}.detach(), 2, out={both}[:, :{n}])",
        )
    )
    b.run(
        b.of(
            f"{both}[:, {n}:] = {x}",
            f"{both}.narrow(1, {n}, {n}).copy_({x}).relu_()",
            f"{both}[:, {n}:] = F.relu({layer}({x}))",
        )
    )
    b.unread += [] if both in b.unread else [both]


def by_index(b: Builder) -> None:
    """Rows added, put or reduced by index: sums over sessions, histories, sparse gradients written by hand."""
    x = b.tensor(lambda t: t.is_floating_point() and t.dim() == 2)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    ids = b.add_input("ids", "torch.randint(0, 5, (batch,))")
    zeros = f"torch.zeros(5, {n}{more})"
    sums = b.let(
        b.of(
            f"{zeros}.index_add_(0, {ids}, {x})",
            f"{zeros}.index_add(0, {ids}, {x})",
            f"{zeros}.scatter_add_(0, {ids}.unsqueeze(1).expand(-1, {n}), {x})",
            f"F.one_hot({ids}, 5).to({x}.dtype).t() @ {x}",
            f"{zeros}.index_put(({ids},), {x}, accumulate=True)",
            f"{zeros}.scatter_reduce(0, {ids}.unsqueeze(1).expand(-1, {n}), {x}, 'amax')",
            f"torch.zeros_like({x}).index_copy_(0, torch.arange({x}.shape[0]).flip(0), {x})[:5]",
        ),
        "s",
    )
    b.let(
        b.of(
            f"{sums}[{ids} % {sums}.shape[0]] + {x}",
            f"{sums}.index_select(0, {ids} % 4) * {x}",
            f"F.embedding({ids} % 4, {sums}) - {x}",
        ),
        "h",
    )


def state(b: Builder) -> None:
    """A buffer that is read, written, and read again behind a graph break."""
    x = b.tensor(lambda t: t.is_floating_point() and t.dim() == 2)
    n, dtype = b.value(x).shape[-1], b.value(x).dtype
    kept = b.buffer(f"torch.ones(4, {n}, dtype={dtype})")
    y = b.let(b.of(f"{x} * {kept}[0]", f"{x} @ {kept}.t() @ {kept}", f"{x} + {kept}.mean(0)"))
    b.features |= {"writes", "breaks"}
    b.run(
        b.of(
            f"{kept}[1] = {x}.detach().mean(0)",
            f"{kept}.mul_(0.5).add_(1)",
            f"{kept}[0] += 1",
            f"{kept}[:1].lerp_({x}[:1].detach(), 0.5)",
        )
    )
    b.run(b.of("torch._dynamo.graph_break()", f"print(end=str({y}.shape)[:0])"))
    b.run(b.of(f"{kept}[0] = {kept}[1]", f"{kept}.add_(1)", f"{y}[:, 0] = 0.5", f"{y}.mul_({kept}[0])"))
    b.let(b.of(f"{y} * {kept}[0]", f"{y} @ {kept}.t()", f"{y} + {x} * {kept}[1]"))


def bag(b: Builder) -> None:
    """Bags with weights, or with offsets."""
    flat = b.chance(40)
    ids = b.add_input("ids", "torch.randint(0, 20, (batch * 3,))" if flat else "torch.randint(0, 20, (batch, 3))")
    more = "" if b.dtype == torch.float32 else f", dtype={b.dtype}"
    table = b.declare(f"nn.EmbeddingBag(20, {b.width}, mode='sum'{more})", "bag", b.chance(30))
    weights = b.add_input("w", f"torch.rand({ids}.shape{more})") if b.chance(70) else ""
    given = f", per_sample_weights={weights}" if weights else ""
    b.let(f"{table}({ids}{f', torch.arange({ids}.shape[0] // 3) * 3' if flat else ''}{given})", "e")


def bins(b: Builder) -> None:
    """Numbers in bins, each bin a row of a table."""
    x = b.tensor(lambda t: t.is_floating_point() and t.dim() == 2)
    more = norms.typed(b, x)
    table = b.declare(f"nn.Embedding(6, 8{more})", "table")
    bounds = b.buffer("torch.linspace(-1, 1, 5)")
    found = b.let(
        b.of(
            f"torch.bucketize({x}.detach().float(), {bounds})",
            f"torch.searchsorted({bounds}, {x}.detach().float(), right=True)",
            f"({x}.detach().unsqueeze(-1) > {bounds}).sum(-1)",
        ),
        "i",
    )
    b.let(b.of(f"{table}({found}).sum(1)", f"{table}({found}[:, :4]).flatten(1)", f"{table}({found}).mean(1)"), "e")


STEPS = {
    "pieces": (pieces, 4),
    "filled": (filled, 2),
    "by_index": (by_index, 2),
    "state": (state, 2),
    "bag": (bag, 2),
    "bins": (bins, 1),
}
