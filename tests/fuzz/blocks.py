"""Blocks of recommendation models: attention of all kinds, token mixing, experts, factorization machines, layers."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.fuzz import norms
from tests.fuzz.build import Builder, Unfit


def tokens(t: Tensor) -> bool:
    """(batch, tokens, width)"""
    return t.is_floating_point() and t.dim() == 3 and t.shape[-1] >= 8


def stack_of(b: Builder, served: bool = False) -> str:
    """A batch of tokens, of what is there or of its own; where the block is `served` often in 16 bits."""
    try:
        x = b.tensor(tokens)
    except Unfit:
        rows = b.tensor(norms.rows)
        rows = rows if b.value(rows).dim() == 2 else b.let(f"{rows}.flatten(1)", "rows")
        x = b.let(f"{rows}.unsqueeze(1) * torch.linspace(-1, 1, {b.tokens}, dtype={rows}.dtype).unsqueeze(1)", "x")
    if served and not half(b.value(x)) and b.chance(60):
        x = b.let(b.of(f"{x}.bfloat16()", f"{x}.to(torch.bfloat16)", f"{x}.half()"), "x")
    return x


def projected(b: Builder, x: str, width: int) -> str:
    layer = b.declare(f"nn.Linear({b.value(x).shape[-1]}, {width}{norms.typed(b, x)})", "linear", b.chance(20))
    return b.let(f"{layer}({x})", "y")


def heads(b: Builder, x: str) -> str:
    """(batch, heads, tokens, width of one)"""
    return b.let(
        b.of(
            f"{x}.unflatten(-1, (2, -1)).transpose(1, 2)",
            f"{x}.view({x}.shape[0], {x}.shape[1], 2, -1).transpose(1, 2)",
            f"{x}.reshape(*{x}.shape[:2], 2, -1).permute(0, 2, 1, 3)",
        ),
        "q",
    )


def attention(b: Builder) -> None:
    """softmax(q k^T) v, by torch's function or by hand."""
    x = stack_of(b)
    n = b.value(x).shape[-1]
    q, k, v = (heads(b, projected(b, x, n)) for _ in range(3))
    style = b.pick(4)
    if style < 2:
        t = b.value(x).shape[1]
        mask = b.of(
            "", ", is_causal=True", f", attn_mask=torch.ones({t}, {t}, dtype=torch.bool).tril()", ", scale=0.25"
        )
        out = b.let(f"F.scaled_dot_product_attention({q}, {k}, {v}{mask})", "o")
    else:
        scores = b.let(b.of(f"{q} @ {k}.transpose(-2, -1) / {n**0.5}", f"torch.matmul({q}, {k}.mT) * 0.25"), "w")
        weights = b.let(b.of(f"{scores}.softmax(-1)", f"F.softmax({scores}, dim=-1)"), "w")
        out = b.let(f"{weights} @ {v}", "o")
    b.let(b.of(f"{out}.transpose(1, 2).flatten(2)", f"{out}.transpose(1, 2).reshape({x}.shape)"), "h")


ACT = (
    "F.gelu({0})",
    "F.relu({0})",
    "F.silu({0})",
    "{0}.relu().square()",
    "F.hardswish({0})",
    "{0}.relu()",
    "F.gelu({0}, approximate='tanh')",
    "F.leaky_relu({0}, 0.01)",
)


def gdpa(b: Builder) -> None:
    """act(q k^T) v: attention without a softmax."""
    x = stack_of(b, served=not b.training)
    n = b.value(x).shape[-1]
    by_heads = b.chance(50)
    made = [projected(b, x, n) for _ in range(3)]
    q, k, v = (heads(b, each) for each in made) if by_heads else made
    scores = b.let(b.of(f"{q} @ {k}.transpose(-2, -1)", f"torch.matmul({q}, {k}.mT)", f"{q} @ {k}.mT * 0.125"), "w")
    weights = b.let(ACT[b.pick(len(ACT))].format(scores), "w")
    out = b.let(b.of(f"{weights} @ {v}", f"torch.matmul({weights}, {v})", f"{weights} @ {v} / 8"), "o")
    if by_heads:
        b.let(f"{out}.transpose(1, 2).flatten(2)", "h")


def pffn(b: Builder) -> None:
    """Kunlun's block: norm, attention by an activation to keys that are made for each sample, norm, residual."""
    s = stack_of(b, served=not b.training)
    n, hidden = b.value(s).shape[-1], b.of(4, 8)
    summary = b.let(f"{s}.mean(1)", "m")
    sizes = f"(2, {hidden}, {n // 2})"
    k, v = (b.let(f"{projected(b, summary, n * hidden)}.unflatten(-1, {sizes})", "k") for _ in range(2))
    ln = b.let(f"F.layer_norm({s}, ({n},))", "n")
    q = b.let(f"{ln}.unflatten(-1, (2, -1)).transpose(1, 2)", "q")
    weights = b.let(ACT[b.pick(4)].format(f"({q} @ {k}.transpose(-2, -1))"), "w")
    out = b.let(f"({weights} @ {v}).transpose(1, 2).flatten(2)", "o")
    z = b.let(b.of(f"{out} + {ln}", f"{ln} + {out}"), "z")
    b.let(b.of(f"F.rms_norm({z}, ({n},), eps=1e-5) + {s}", f"{s} + F.rms_norm({z}, ({n},), eps=1e-5)"), "h")


def mixed(b: Builder) -> None:
    """A linear over the tokens: token mixing, a linear compression."""
    x = stack_of(b)
    t = b.value(x).shape[1]
    layer = b.declare(f"nn.Linear({t}, {b.of(t, 4, 1)}{norms.typed(b, x)})", "mix")
    if b.chance(30):
        flipped = b.let(b.of(f"{x}.transpose(1, 2)", f"{x}.mT"), "t")
        b.let(b.of(f"{layer}({flipped}).transpose(1, 2)", f"{layer}({flipped}).mT"), "h")
    else:
        b.let(f"{layer}({x}.transpose(1, 2)).transpose(1, 2)", "h")


def fm(b: Builder) -> None:
    """Wukong's factorization machine and the norm behind it."""
    x = stack_of(b, served=not b.training)
    t, more = b.value(x).shape[1], norms.typed(b, x)
    y = b.declare(f"nn.Parameter(torch.randn({t}, 4{more}))", "y")
    out = b.let(
        b.of(
            f"{x} @ ({x}.transpose(1, 2) @ {y})",
            f"({x} @ {x}.transpose(1, 2)) @ {y}",
            f"torch.bmm(torch.bmm({x}, {x}.transpose(1, 2)), {y}.expand({x}.shape[0], -1, -1))",
            f"torch.einsum('bnm,mk->bnk', torch.einsum('bnd,bmd->bnm', {x}, {x}), {y})",
            f"torch.matmul({x} @ {x}.mT, {y})",
        ),
        "p",
    )
    if b.chance(60):
        b.let(f"{b.declare(f'nn.LayerNorm({4 * t}{more})', 'norm')}({out}.flatten(1))", "n")


def chain(b: Builder) -> None:
    """Three matrices."""
    x = b.tensor(norms.rows)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    u, v = (b.declare(f"nn.Parameter(torch.randn({sizes}{more}) * 0.3)", "p") for sizes in (f"{n}, 2", f"2, {n}"))
    b.let(
        b.of(
            f"{x} @ {u} @ {v}",
            f"{x} @ ({u} @ {v})",
            f"torch.matmul({x}, torch.matmul({u}, {v}))",
            f"torch.mm({u}, {v}).t() @ {x}.unsqueeze(-1)",
        ),
        "p",
    )


def experts(b: Builder) -> None:
    """Linears of one shape on different tensors, and a gate."""
    x = b.tensor(norms.rows)
    n, many, more = b.value(x).shape[-1], b.of(4, 2, 6, 3), norms.typed(b, x)
    first = [b.let(f"F.relu({b.declare(f'nn.Linear({n}, 16{more})', 'linear')}({x}))", "e") for _ in range(many)]
    second = [b.let(f"{b.declare(f'nn.Linear(16, 8{more})', 'linear')}({e})", "e") for e in first]
    if b.chance(50):
        gate = b.let(f"{b.declare(f'nn.Linear({n}, {many}{more})', 'gate')}({x}).softmax(-1)", "g")
        stacked = b.let(f"torch.stack([{', '.join(second)}], -2)", "e")
        b.let(b.of(f"({gate}.unsqueeze(-1) * {stacked}).sum(-2)", f"({gate}.unsqueeze(-2) @ {stacked}).squeeze(-2)"))
    else:
        b.let(b.of(" + ".join(second), f"torch.cat([{', '.join(second)}], -1)"))


def products(b: Builder) -> None:
    """bmm, baddbmm, einsum, addmm, outer products."""
    x = stack_of(b)
    t, n, more = *b.value(x).shape[1:], norms.typed(b, x)
    w = b.declare(f"nn.Parameter(torch.randn({t}, {n}, 8{more}) * 0.3)", "w")
    b.let(
        b.of(
            f"torch.einsum('btn,tnk->btk', {x}, {w})",
            f"torch.bmm({x}.transpose(0, 1), {w}).transpose(0, 1)",
            f"torch.baddbmm({w}[:, :1], {x}.transpose(0, 1), {w}).transpose(0, 1)",
            f"({x}.unsqueeze(-2) @ {w}).squeeze(-2)",
            f"torch.einsum('bin,bjn->bij', {x}, {x})",
            f"torch.addmm({w}[0, 0], {x}.flatten(0, 1), {w}[0])",
            f"torch.bmm({x}, {x}.transpose(1, 2)).flatten(1)",
            f"({x}.unsqueeze(2) * {x}.unsqueeze(1)).sum(-1)",
        ),
        "p",
    )


def head(b: Builder) -> None:
    """A column out of rows."""
    x = b.tensor(norms.rows)
    layer = b.declare(f"nn.Linear({b.value(x).shape[-1]}, 1{norms.typed(b, x)})", "head")
    b.let(b.of(f"{layer}({x})", f"{layer}({x}).sigmoid()", f"{layer}({x}).squeeze(-1)"), "logit")


def tower(b: Builder) -> None:
    """Linear, norm, activation, linear: what one kernel could do."""
    x = b.tensor(norms.rows)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    for _ in range(1 + b.pick(2)):
        bias = ", bias=False" if b.chance(25) else ""
        layer = b.declare(f"nn.Linear({n}, {n}{bias}{more})", "linear")
        x = b.let(f"{layer}({x})", "y")
        norm = b.of(f"nn.LayerNorm({n}{more})", f"nn.RMSNorm({n}, 1e-5{more})", "")
        if norm:
            x = b.let(f"{b.declare(norm, 'norm')}({x})", "n")
        x = norms.activate(b, x, few=True)
        if b.training and b.chance(50):
            x = b.let(f"F.dropout({x}, 0.5, self.training)", "d")
            b.features.add("random")
    b.let(f"{b.declare(f'nn.Linear({n}, {b.of(n, 16, 24, 1)}{more})', 'linear')}({x})", "y")


LAYER = """\
class {name}(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.{norm}({n}{more})
        self.a = nn.Linear({n}, {n}{more})
        self.b = nn.Sequential(nn.Linear({n}, 8{more}), {act}, nn.Linear(8, {n}{more}))

    def forward(self, x):
        {first}
        {second}
        return x
"""


def layers(b: Builder) -> None:
    """Repeated layers with residual branches, which CompSkip leaves out."""
    x = b.tensor(norms.rows)
    n, more, name = b.value(x).shape[-1], norms.typed(b, x), b.fresh("Layer")
    first = b.of("x = x + self.a(self.norm(x))", "x = self.a(self.norm(x)) + x", "x += self.a(self.norm(x))")
    second = b.of("x = x + self.b(x)", "x = x + self.b(F.relu(x))", "x += self.b(x)")
    act = b.of("nn.ReLU()", "nn.SiLU()", "nn.ReLU(inplace=True)", "nn.GELU()")
    norm = b.of("LayerNorm", "RMSNorm")
    b.define(LAYER.format(name=name, n=n, more=more, first=first, second=second, act=act, norm=norm))
    stack = b.declare(f"nn.ModuleList([{name}() for _ in range({2 + b.pick(2)})])", "blocks")
    h = b.let(b.of(f"{x} * 1", f"{x} + 0.5"))
    b.run(f"for layer in {stack}: {h} = layer({h})")
    b.unread += [] if h in b.unread else [h]
    b.features.add("layers")


def half(t: Tensor) -> bool:
    return t.dtype in (torch.bfloat16, torch.float16)


STEPS = {
    "attention": (attention, 8),
    "gdpa": (gdpa, 5),
    "pffn": (pffn, 10),
    "mixed": (mixed, 7),
    "fm": (fm, 9),
    "chain": (chain, 3),
    "experts": (experts, 7),
    "products": (products, 4),
    "head": (head, 10),
    "tower": (tower, 10),
    "layers": (layers, 4),
}
