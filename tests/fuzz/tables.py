"""Inputs of all kinds and what reads them: embeddings, bags, masks, strided and shared memory, indices."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.fuzz import norms
from tests.fuzz.build import DTYPES, Builder


def embedding(b: Builder) -> None:
    """Rows of a table, one or several a sample; a bag of them."""
    ids = b.add_input("ids", b.of("torch.randint(0, 20, (batch,))", "torch.randint(0, 20, (batch, 3))"))
    more = "" if b.dtype == torch.float32 else f", dtype={b.dtype}"
    padding = b.of("", ", padding_idx=0", ", max_norm=1.0") if not b.training else b.of("", ", padding_idx=0")
    if b.value(ids).dim() == 2 and b.chance(40):
        mode = b.of("sum", "mean")
        bag = b.declare(f"nn.EmbeddingBag(20, {b.width}, mode='{mode}'{more})", "bag", b.chance(30))
        b.let(f"{bag}({ids})", "e")
        return
    table = b.declare(f"nn.Embedding(20, {b.width}{padding}{more})", "table", b.chance(40))
    x = b.let(b.of(f"{table}({ids})", f"F.embedding({ids}, {table}.weight)", f"{table}.weight[{ids}]"), "e")
    if b.chance(30):  # tied
        b.features.add("tied")
        b.let(f"{x} @ {table}.weight.t()", "y")


def user(b: Builder) -> None:
    """One user for all rows, and what reads both."""
    x = b.tensor(lambda t: norms.rows(t) and t.dim() == 2)
    more = norms.typed(b, x)
    one = b.add_input("u", f"torch.randn(1, {b.width}{more})")
    if b.chance(40):
        one = b.let(f"F.relu({b.declare(f'nn.Linear({b.width}, {b.width}{more})', 'linear')}({one}))", "u")
    wide = b.let(
        b.of(
            f"{one}.expand({x}.shape[0], -1)",
            f"{one}.repeat({x}.shape[0], 1)",
            f"{one}.repeat_interleave({x}.shape[0], 0)",
            f"{one}.expand_as({x})",
            f"{one}[torch.zeros({x}.shape[0], dtype=torch.long)]",
        ),
        "w",
    )
    style = b.pick(4)
    if style == 0:
        both = b.let(b.of(f"torch.cat([{wide}, {x}], -1)", f"torch.cat([{x}, {wide}], 1)"), "c")
        b.let(f"{b.declare(f'nn.Linear({b.value(both).shape[-1]}, 16{more})', 'linear')}({both})", "y")
    elif style == 1:
        b.let(f"{b.declare(f'nn.LayerNorm({b.width}{more})', 'norm')}({wide})", "n")
    elif style == 2:
        hidden = norms.activate(b, b.let(f"{wide} * 2", "w"), few=True)
        b.let(f"{b.declare(f'nn.Linear({b.width}, 16{more})', 'linear')}({hidden})", "y")
    else:
        b.let(f"F.softmax({wide} @ {b.declare(f'nn.Linear({b.width}, 16{more})', 'linear')}.weight.t(), -1)", "y")


def masked(b: Builder) -> None:
    """Values chosen by a mask that is computed or given."""
    x = b.tensor(lambda t: t.is_floating_point() and t.dim() >= 2)
    given = b.chance(40)
    mask = b.add_input("mask", "torch.rand(batch) > 0.4") if given else b.let(b.of(f"{x} > 0", f"{x}.abs() < 1"), "m")
    shaped = f"{mask}.view(-1, *[1] * {b.value(x).dim() - 1})" if given else mask
    b.let(
        b.of(
            f"{x}.masked_fill({shaped}, 0.0)",
            f"torch.where({shaped}, {x}, {x} * 0.1)",
            f"{x} * {shaped}",
            f"torch.where({shaped}, {x}, 0.5)",
            f"{x}.masked_fill(~({shaped}), 0.0).sum(1, keepdim=True) + {x}",
        ),
    )


def more_inputs(b: Builder) -> None:
    """A second input: strided, transposed, expanded, a view of the first, of another dtype."""
    like = b.tensor(lambda t: norms.rows(t) and t.dim() == 2)
    n, more = b.value(like).shape[-1], norms.typed(b, like)
    first = next(iter(b.inputs))
    made = b.of(
        f"torch.randn(batch, {2 * n}{more})[:, ::2]",
        f"torch.randn({n}, batch{more}).t()",
        f"torch.randn(batch, 1{more}).expand(-1, {n})",
        f"{first}.detach()[:, :{n}]",
        f"torch.randn(2 * batch, {n}{more})[1::2]",
        f"torch.randn(batch, {n}, dtype={DTYPES[b.pick(len(DTYPES))]})",
        f"{first}.detach().view(-1)[:{n}]",
        f"{first}.detach()",
        f"torch.randn(batch, {n} + 3{more})[:, 3:]",
    )
    needs = ".requires_grad_()" if b.training and "expand" not in made and "detach" not in made and b.chance(50) else ""
    b.features.add("aliased inputs" if "detach" in made else "strided inputs")
    z = b.add_input("z", made + needs)
    if needs:
        z = b.let(f"{z} * 1", "z")
    b.unread.append(z)
    if b.value(z).dim() == 1:
        b.let(f"{like} * {z}.to({like}.dtype)")
    else:
        b.let(b.of(f"{like} + {z}", f"{like} * {z}.to({like}.dtype)", f"torch.cat([{like}, {z}.to({like}.dtype)], -1)"))


def cast(b: Builder) -> None:
    """Another dtype from here on."""
    x = b.tensor(lambda t: t.is_floating_point() and t.dim() >= 2)
    to = DTYPES[b.pick(len(DTYPES))]
    b.let(b.of(f"{x}.to({to})", f"{x}.type({to})", f"{x}.float()", f"{x}.to({x}.dtype)"), "c")
    b.features.add("mixed dtypes")


def joined(b: Builder) -> None:
    """Concatenations, stacks, splits and other ways to move values around."""
    x = b.tensor(lambda t: t.is_floating_point() and t.dim() >= 2 and t.shape[-1] % 4 == 0)
    b.let(
        b.of(
            f"torch.cat([{x}, {x} * 2], -1)",
            f"torch.cat({x}.chunk(2, -1)[::-1], -1)",
            f"torch.stack([{x}, -{x}], 1)",
            f"{x}.unflatten(-1, (4, -1)).transpose(-1, -2).flatten(-2)",
            f"{x}.roll(1, 0)",
            f"torch.cat([{x}[..., :4], {x}.narrow(-1, 4, {x}.shape[-1] - 4)], -1)",
            f"{x}.split(4, -1)[1]",
            f"F.pad({x}, (0, 4))",
            f"{x}.index_select(-1, torch.arange({x}.shape[-1] - 1, -1, -1))",
            f"{x}.gather(-1, {x}.argsort(-1))",
            f"F.glu({x}, -1)",
            f"{x}.flatten(1)",
        ),
        "j",
    )


def reduced(b: Builder) -> None:
    x = b.tensor(lambda t: t.is_floating_point() and t.dim() >= 2)
    b.let(
        b.of(
            f"{x}.sum(-1, keepdim=True) + {x}",
            f"{x} - {x}.mean(1, keepdim=True)",
            f"{x}.amax(-1)",
            f"{x}.cumsum(-1)",
            f"{x}.logsumexp(-1)",
            f"{x} / ({x}.norm(dim=-1, keepdim=True) + 1)",
            f"{x}.mean(1)",
            f"{x}.std(-1, keepdim=True) * {x}",
            f"{x}.sum((-1, -2))",
        ),
        "r",
    )


def is_matrix(t: Tensor) -> bool:
    return t.is_floating_point() and t.dim() == 2


STEPS = {
    "embedding": (embedding, 4),
    "user": (user, 4),
    "masked": (masked, 2),
    "more_inputs": (more_inputs, 3),
    "cast": (cast, 2),
    "joined": (joined, 4),
    "reduced": (reduced, 3),
}
