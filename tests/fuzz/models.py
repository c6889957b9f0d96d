"""More of what models are made of: MLPs with dropout, cross networks, gates, pooling under masks, loops over time,
convolutions, two towers, weights that are computed."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.fuzz import norms
from tests.fuzz.blocks import stack_of
from tests.fuzz.build import Builder


def matrix(t: Tensor) -> bool:
    return norms.rows(t) and t.dim() == 2


def mlp(b: Builder) -> None:
    """Linears, activations and dropout in one nn.Sequential, as most rankers end."""
    x = b.tensor(norms.rows)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    act = b.of("nn.ReLU()", "nn.ReLU()", "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.GELU()", "nn.SiLU()", "nn.PReLU()")
    act = act.replace("PReLU()", f"PReLU(dtype={b.value(x).dtype})")
    norm = b.of("", "", "", f"nn.LayerNorm(16{more}), ", f"nn.BatchNorm1d(16{more}), " * (b.value(x).dim() == 2))
    drop = f", nn.Dropout({b.of(0.5, 0.2)})" if b.chance(80) else ""
    layers = [f"nn.Linear({n}, 16{more})", f"{norm}{act}{drop}"]
    if b.chance(50):
        layers += [f"nn.Linear(16, 16{more})", f"{act}{drop}"]
    b.features |= {"random"} if drop and b.training else set()
    layers.append(f"nn.Linear(16, {b.of(1, 16, 8)}{more})")
    declared = f"nn.Sequential({', '.join(layers)})"
    b.let(f"{b.declare(declared, 'mlp')}({x})", "y")


def cross(b: Builder) -> None:
    """DCN's cross layers, with a full matrix, a vector or two thin matrices."""
    x = first = b.tensor(matrix)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    style = b.pick(4)
    for _ in range(1 + b.pick(3)):
        layer = b.declare(f"nn.Linear({n}, {1 if style == 1 else n}{more})", "cross")
        if style == 2:
            v = b.declare(f"nn.Linear({n}, 4, bias=False{more})", "v")
            u = b.declare(f"nn.Linear(4, {n}{more})", "u")
            x = b.let(b.of(f"{first} * {u}({v}({x})) + {x}", f"torch.addcmul({x}, {first}, {u}({v}({x})))"), "c")
        else:
            x = b.let(b.of(f"{first} * {layer}({x}) + {x}", f"torch.addcmul({x}, {first}, {layer}({x}))"), "c")
        if style == 3:
            b.run(f"{x} += {first}")
            b.unread += [] if x in b.unread else [x]


def gate(b: Builder) -> None:
    """MaskNet's masks, squeeze and excitation, PPNet's gates, GLU."""
    x = b.tensor(norms.rows)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    small, wide = (b.declare(f"nn.Linear({sizes}{more})", "gate") for sizes in (f"{n}, 8", f"8, {n}"))
    made = b.let(
        b.of(
            f"{wide}(F.relu({small}({x})))",
            f"{wide}({small}({x}).relu_()).sigmoid() * 2",
            f"torch.sigmoid({wide}(F.silu({small}({x}.detach()))))",
        ),
        "g",
    )
    normed = b.let(f"{b.declare(f'nn.LayerNorm({n}{more})', 'norm')}({x})", "n") if b.chance(50) else x
    b.let(b.of(f"{normed} * {made}", f"{made} * {normed} + {x}", f"{made}.mul_({normed})"), "m")


def pooled(b: Builder) -> None:
    """A sequence under a mask of lengths: mean, attention of a target, softmax with what is not there left out."""
    x = stack_of(b)
    t, n, more = *b.value(x).shape[1:], norms.typed(b, x)
    lengths = b.add_input("len", f"torch.randint(1, {t} + 1, (batch,))")
    mask = b.let(b.of(f"torch.arange({t}) < {lengths}.unsqueeze(1)", f"torch.arange({t})[None] < {lengths}[:, None]"))
    style = b.pick(4)
    if style == 0:
        b.let(f"({x} * {mask}.unsqueeze(-1)).sum(1) / {lengths}.unsqueeze(1)", "m")
    elif style == 1:
        b.let(f"{x}.masked_fill(~{mask}.unsqueeze(-1), float('-inf')).amax(1)", "m")
    else:
        query = b.declare(f"nn.Parameter(torch.randn({n}{more}))", "query")
        scores = b.let(b.of(f"{x} @ {query}", f"({x} * {query}).sum(-1)", f"torch.einsum('btn,n->bt', {x}, {query})"))
        out = b.of(
            f"{scores}.masked_fill(~{mask}, float('-inf'))",
            f"torch.where({mask}, {scores}, -1e4)",
            f"{scores}.masked_fill_(~{mask}, -1e4)",
            f"{scores} + (~{mask}) * -1e4",
        )
        weights = b.let(f"{b.let(out, 's')}.softmax(-1).to({x}.dtype)", "w")
        b.let(
            b.of(
                f"({weights}.unsqueeze(-1) * {x}).sum(1)",
                f"({weights}.unsqueeze(1) @ {x}).squeeze(1)",
                f"torch.einsum('bt,btn->bn', {weights}, {x})",
            ),
            "m",
        )


def in_time(b: Builder) -> None:
    """A recurrence over the tokens, and what is kept of it."""
    x = stack_of(b)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    ih, hh = (b.declare(f"nn.Linear({n}, 8{more})", "ih"), b.declare(f"nn.Linear(8, 8{more})", "hh"))
    h, outs = b.let(f"{x}.new_zeros({x}.shape[0], 8)", "h"), b.fresh("outs")
    b.run(f"{outs} = []")
    step = b.of(
        f"torch.tanh({ih}({x}[:, t]) + {hh}({h}))",
        f"{h} + F.relu({ih}({x}.select(1, t)) * {hh}({h}))",
        f"{h}.sigmoid() * {hh}({h}) + {ih}({x}[:, t])",
    )
    keep = b.of(f"{outs}.append({h})", f"{outs}.append({h}.clone())", f"{outs}.insert(0, {h})")
    b.run(f"for t in range({b.value(x).shape[1]}): {h} = {step}; {keep}")
    b.let(b.of(f"torch.stack({outs}, 1)", f"torch.cat({outs}, -1)", f"{outs}[-1]"), "o")


def convolved(b: Builder) -> None:
    """Caser's convolutions over a sequence; a filter in the frequencies."""
    x = stack_of(b)
    t, n, more = *b.value(x).shape[1:], norms.typed(b, x)
    style = b.pick(3)
    if style == 0:
        layer = b.declare(f"nn.Conv1d({n}, 8, 3, padding=1{more})", "conv")
        b.let(f"{layer}({x}.transpose(1, 2)).transpose(1, 2)", "c")
    elif style == 1:
        layer = b.declare(f"nn.Conv1d({t}, 4, 1{more})", "conv")
        b.let(b.of(f"F.relu({layer}({x}))", f"{layer}({x}).amax(-1)"), "c")
    else:
        b.features.add("complex")
        w = b.declare(f"nn.Parameter(torch.randn({t // 2 + 1}, {n}, 2) * 0.02)", "filter")
        seen = b.let(f"torch.fft.rfft({x}.float(), dim=1, norm='ortho') * torch.view_as_complex({w})", "f")
        b.let(f"torch.fft.irfft({seen}, n={t}, dim=1, norm='ortho').to({x}.dtype) + {x}", "c")


def towers(b: Builder) -> None:
    """Two towers, and logits of all rows with all; each row's own is its label."""
    x = b.tensor(matrix)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    made = [f"{b.declare(f'nn.Linear({n}, 8{more})', 'tower')}({x})" for _ in range(2)]
    u, v = (b.let(b.of(f"F.normalize({y}, dim=-1)", f"F.normalize({y}, 2, -1)", y), "u") for y in made)
    logits = b.let(b.of(f"{u} @ {v}.t() / 0.07", f"torch.mm({u}, {v}.T) * 20", f"torch.einsum('id,jd->ij', {u}, {v})"))
    b.let(
        b.of(
            f"{logits} - {logits}.diagonal().unsqueeze(1)",
            f"{logits}.diagonal().sigmoid()",
            f"F.cross_entropy({logits}.float(), torch.arange({x}.shape[0]), reduction='none')",
            f"{logits}.masked_fill(torch.eye({x}.shape[0], dtype=torch.bool), -1e4).logsumexp(-1)",
            f"({u} * {v}).sum(-1)",
            f"F.cosine_similarity({u}, {v}, dim=-1)",
        ),
        "l",
    )


def computed_weight(b: Builder) -> None:
    """A weight that is normalised, masked or made on the way."""
    x = b.tensor(norms.rows)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    kind = b.pick(4)
    if kind < 2:
        wrap = "orthogonal" if kind == 1 and b.value(x).dtype == torch.float32 else "weight_norm"
        b.let(f"{b.declare(f'nn.utils.parametrizations.{wrap}(nn.Linear({n}, 8{more}))', 'linear')}({x})", "y")
        return
    weight = b.declare(f"nn.Linear({n}, 8{more})", "linear")
    b.let(
        b.of(
            f"F.linear({x}, {weight}.weight * torch.sigmoid({weight}.weight), {weight}.bias)",
            f"F.linear({x}, F.normalize({weight}.weight, dim=1))",
            f"{x} @ ({weight}.weight - {weight}.weight.mean(0)).t()",
            f"F.linear({x}, {weight}.weight[:4], {weight}.bias[:4])",
            f"F.linear({x}, torch.cat([{weight}.weight, {weight}.weight * 2]))",
            f"torch.einsum('...d,ed->...e', {x}, {weight}.weight)",
        ),
        "y",
    )


def pairs(b: Builder) -> None:
    """All pairs of fields: DLRM's dots, FM by squares, bilinear products."""
    x = stack_of(b)
    t, n, more = *b.value(x).shape[1:], norms.typed(b, x)
    w = b.declare(f"nn.Parameter(torch.randn({n}, {n}{more}) * 0.3)", "w")
    i, j = f"torch.triu_indices({t}, {t}, 1)[0]", f"torch.triu_indices({t}, {t}, 1)[1]"
    b.let(
        b.of(
            f"({x} @ {x}.mT)[:, {i}, {j}]",
            f"({x}.sum(1).square() - {x}.square().sum(1)) * 0.5",
            f"{x}[:, {i}] * {x}[:, {j}]",
            f"({x}[:, {i}] @ {w}) * {x}[:, {j}]",
            f"torch.einsum('bid,de,bje->bij', {x}, {w}, {x})",
            f"torch.bmm({x}, {x}.mT).tril(-1).flatten(1)",
            f"torch.einsum('bnd,bmd->bnm', {x}, {x}).flatten(1)",
        ),
        "p",
    )


def top_experts(b: Builder) -> None:
    """The best experts of a row, and their weights alone."""
    x = b.tensor(matrix)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    logits = b.let(f"{b.declare(f'nn.Linear({n}, 4{more})', 'gate')}({x})", "g")
    best, place = b.fresh("best"), b.fresh("place")
    b.run(f"{best}, {place} = {logits}.topk(2, -1)")
    weights = b.let(
        b.of(
            f"torch.zeros_like({logits}).scatter_(1, {place}, {best}.softmax(-1))",
            f"torch.zeros_like({logits}).scatter(1, {place}, {best}.softmax(-1))",
            f"F.one_hot({place}, 4).to({x}.dtype).mul({best}.softmax(-1).unsqueeze(-1)).sum(1)",
            f"{logits}.masked_fill({logits} < {best}[:, -1:], float('-inf')).softmax(-1)",
        ),
        "w",
    )
    layers = [b.let(f"F.relu({b.declare(f'nn.Linear({n}, 16{more})', 'expert')}({x}))", "e") for _ in range(4)]
    b.let(f"(torch.stack([{', '.join(layers)}], 1) * {weights}.unsqueeze(-1)).sum(1)", "o")


STEPS = {
    "mlp": (mlp, 16),
    "cross": (cross, 3),
    "gate": (gate, 4),
    "pooled": (pooled, 3),
    "in_time": (in_time, 1),
    "convolved": (convolved, 2),
    "towers": (towers, 3),
    "computed_weight": (computed_weight, 2),
    "pairs": (pairs, 3),
    "top_experts": (top_experts, 2),
}
