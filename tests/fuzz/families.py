"""Whole families of layers as the field's models have them: attention modules, DIN and HSTU, regions of torch.func,
sums of many letters, weights that are constrained in place, layers that are shared, losses, hashed ids, windows."""

from __future__ import annotations

from tests.fuzz import norms
from tests.fuzz.blocks import projected, stack_of
from tests.fuzz.build import Builder
from tests.fuzz.models import matrix


def attention_module(b: Builder) -> None:
    """nn.MultiheadAttention and the encoder layer around it, with masks."""
    x = stack_of(b)
    t, n, more = *b.value(x).shape[1:], norms.typed(b, x)
    causal = f"torch.ones({t}, {t}, dtype=torch.bool).triu(1)"
    if b.chance(40):
        first = b.of("", ", norm_first=True")
        made = f"nn.TransformerEncoderLayer({n}, 2, 32, dropout=0.0, batch_first=True{first}{more})"
        layer = b.declare(made, "encoder")
        b.let(b.of(f"{layer}({x})", f"{layer}({x}, src_mask={causal})"), "o")
        return
    layer = b.declare(f"nn.MultiheadAttention({n}, 2, batch_first=True{more})", "attention", b.chance(20))
    absent = b.add_input("absent", f"torch.arange({t}) >= torch.randint(1, {t} + 1, (batch, 1))")
    b.let(
        b.of(
            f"{layer}({x}, {x}, {x}, need_weights=False)[0]",
            f"{layer}({x}, {x}, {x})[0]",
            f"{layer}({x}[:, :1], {x}, {x}, need_weights=False)[0]",
            f"{layer}({x}, {x}, {x}, key_padding_mask={absent}, need_weights=False)[0]",
            f"{layer}({x}, {x}, {x}, attn_mask={causal}, need_weights=False)[0]",
            f"{layer}({x}, {x}, {x}, average_attn_weights=False)[1].flatten(1, 2)",
        ),
        "o",
    )


def target_attention(b: Builder) -> None:
    """DIN: what was seen is weighed by an MLP that looks at it and at the candidate."""
    x = stack_of(b)
    t, n, more = *b.value(x).shape[1:], norms.typed(b, x)
    one_user = b.chance(30)
    seen = b.add_input("seen", f"torch.randn({1 if one_user else 'batch'}, {t}, {n}{more})")
    seen = b.let(f"{seen}.expand({x}.shape[0], -1, -1)", "seen") if one_user else seen
    item = b.let(b.of(f"{x}[:, 0]", f"{x}.mean(1)", f"{x}.select(1, -1)"), "item")
    wide = b.let(b.of(f"{item}.unsqueeze(1).expand_as({seen})", f"{item}[:, None].repeat(1, {t}, 1)"), "wide")
    both = b.let(f"torch.cat([{wide}, {seen}, {wide} - {seen}, {wide} * {seen}], -1)", "c")
    act = b.of("nn.ReLU()", "nn.Sigmoid()", f"nn.PReLU(dtype={b.value(x).dtype})")
    layers = b.declare(f"nn.Sequential(nn.Linear({4 * n}, 16{more}), {act}, nn.Linear(16, 1{more}))", "din")
    w = b.let(b.of(f"{layers}({both}).squeeze(-1)", f"{layers}({both}).softmax(1).squeeze(-1)"), "w")
    b.let(
        b.of(
            f"({w}.unsqueeze(-1) * {seen}).sum(1)",
            f"torch.bmm({w}.unsqueeze(1), {seen}).squeeze(1)",
            f"torch.einsum('bt,btn->bn', {w}, {seen})",
            f"torch.cat([({w}.unsqueeze(1) @ {seen}).squeeze(1), {item}], -1)",
        ),
        "o",
    )


def pointwise_attention(b: Builder) -> None:
    """HSTU: silu of scores with a bias by distance, gated by u."""
    x = stack_of(b)
    t, n, more = *b.value(x).shape[1:], norms.typed(b, x)
    normed = b.let(f"F.layer_norm({x}, ({n},))", "n") if b.chance(60) else x
    made = b.let(f"F.silu({projected(b, normed, 4 * n)})", "uvqk")
    u, v, q, k = (b.fresh(name) for name in "uvqk")
    b.run(f"{u}, {v}, {q}, {k} = " + b.of(f"{made}.chunk(4, -1)", f"torch.split({made}, {n}, dim=-1)"))
    bias = b.declare(f"nn.Parameter(torch.randn({2 * t - 1}{more}) * 0.1)", "bias")
    place = f"torch.arange({t}).unsqueeze(1) - torch.arange({t}) + {t - 1}"
    w = b.let(b.of(f"{q} @ {k}.mT + {bias}[{place}]", f"torch.einsum('bin,bjn->bij', {q}, {k})"), "w")
    w = b.let(b.of(f"F.silu({w}) / {t}", f"F.silu({w}).tril() * {1 / t}", f"F.relu({w}).square() / {t}"), "w")
    out = b.let(f"{w} @ {v}", "o")
    b.let(b.of(f"F.layer_norm({out}, ({n},)) * {u} + {x}", f"{projected(b, out, n)} * {u}", f"{out} * {u}"), "o")


def transformed(b: Builder) -> None:
    """Regions of torch.func: vmap, gradients of a function, a module called with other parameters."""
    x = b.tensor(matrix)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    layer = b.declare(f"nn.Linear({n}, {n}{more})", "linear")
    many = b.declare(f"nn.Parameter(torch.randn(3, {n}, 8{more}) * 0.2)", "many")
    b.let(
        b.of(
            f"torch.vmap({layer})({x})",
            f"torch.func.functional_call({layer}, {{'weight': {layer}.weight * 0.5}}, ({x},))",
            f"torch.vmap(lambda w: F.relu({x} @ w))({many}).sum(0)",
            f"torch.func.grad(lambda t: {layer}(t).square().sum())({x})",
            f"torch.vmap(lambda t: t * torch.sigmoid({layer}(t)))({x})",
            f"torch.vmap(torch.func.grad(lambda t: torch.tanh({layer}(t)).sum()))({x})",
            f"torch.vmap(lambda t: t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6))({x})",
            f"torch.func.functional_call({layer}, {{'weight': {many}[0].repeat(1, {n // 8}), 'bias': None}}, {x})",
            f"torch.func.jvp({layer}, ({x},), ({x} * 0.1,))[1]",
        ),
        "f",
    )


def letters(b: Builder) -> None:
    """Products by letters and by dimensions: three operands, a diagonal, sums over several."""
    x = stack_of(b)
    t, n, more = *b.value(x).shape[1:], norms.typed(b, x)
    w = b.declare(f"nn.Parameter(torch.randn({t}, {n}, 8{more}) * 0.3)", "w")
    v = b.declare(f"nn.Parameter(torch.randn({t}, 8{more}))", "v")
    b.let(
        b.of(
            f"torch.einsum('btn,tnk,tk->btk', {x}, {w}, {v})",
            f"torch.einsum('bii->bi', {x} @ {x}.mT)",
            f"torch.einsum('btn,btm->bnm', {x}, {x})",
            f"torch.einsum('btn,tnk->bk', {x}, {w})",
            f"torch.tensordot({x}, {w}, dims=([1, 2], [0, 1]))",
            f"torch.einsum('bshd,bthd->bhst', *[{x}.unflatten(-1, (2, -1))] * 2).flatten(1, 2)",
            f"{b.declare(f'nn.Bilinear({n}, {n}, 8{more})', 'bilinear')}({x}[:, 0], {x}[:, -1])",
            f"torch.einsum('...n,nk->...k', {x}, {w}[0])",
            f"torch.linalg.multi_dot([{x}[:, 0], {w}[0], {v}.t()])",
            f"torch.outer({x}.sum((1, 2)), {v}[0])",
            f"torch.einsum('btn,bsn->bts', {x}, {x}).diagonal(dim1=1, dim2=2)",
            f"torch.addmm({v}[0], {x}[:, 0], {w}[0], beta=0.5, alpha=2)",
            f"torch.einsum('btn->bn', {x}) @ {w}.sum(0)",
        ),
        "p",
    )


def dense(b: Builder) -> None:
    """Numbers as they come: logarithms, clamps, scales by column, AutoDis' soft bins."""
    x = b.tensor(matrix)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    y = b.let(
        b.of(
            f"torch.log1p({x}.clamp(min=0))",
            f"{x}.sign() * torch.log1p({x}.abs())",
            f"torch.where({x} > 0, {x}, {x}.exp() - 1)",
            f"({x} - {x}.amin(0)) / ({x}.amax(0) - {x}.amin(0) + 1e-3)",
            f"{x}.nan_to_num(0.0).clamp(-2, 2)",
            f"torch.cat([{x}, {x}.square(), ({x}.abs() + 1).sqrt()], -1)",
            f"{x} * ({x}.abs() < 2) + {x}.clamp(-1, 1)",
            f"torch.lerp({x}, {x}.flip(0), 0.25)",
            f"torch.nn.functional.threshold({x}, 0.1, 0.0)",
        ),
        "d",
    )
    n = b.value(y).shape[-1]
    if b.chance(50):
        bins = b.let(f"{b.declare(f'nn.Linear(1, 4{more})', 'bins')}({y}.unsqueeze(-1))", "s")
        meta = b.declare(f"nn.Parameter(torch.randn({n}, 4, 8{more}))", "meta")
        soft = b.let(b.of(f"(F.leaky_relu({bins}) * 0.8).softmax(-1)", f"{bins}.softmax(-1)"), "s")
        b.let(b.of(f"torch.einsum('bfk,fkd->bfd', {soft}, {meta})", f"({soft}.unsqueeze(-2) @ {meta}).squeeze(-2)"))
    else:
        b.let(f"{b.declare(f'nn.Linear({n}, 16{more})', 'linear')}({y})", "y")


def ordered(b: Builder) -> None:
    """Rows in an order: sorted, the best of them, running sums, segments."""
    x = b.tensor(matrix)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    ids = b.add_input("ids", "torch.randint(0, 5, (batch,))")
    zeros, spread = f"torch.zeros(5, {n}{more})", f"{ids}.unsqueeze(1).expand(-1, {n})"
    b.let(
        b.of(
            f"{x}[{x}[:, 0].argsort()]",
            f"{x}.gather(-1, {x}.topk(3, -1).indices)",
            f"{x}.cumsum(0) / torch.arange(1, {x}.shape[0] + 1).unsqueeze(1)",
            f"torch.sort({x}, -1, descending=True).values[:, :4]",
            f"torch.cummax({x}, 0).values",
            f"{x}.diff(dim=0, prepend={x}[:1])",
            f"{zeros}.scatter_reduce(0, {spread}, {x}, 'mean', include_self=False)[{ids}]",
            f"{zeros}.index_add_(0, {ids}, {x})[{ids}] / torch.bincount({ids}, minlength=5)[{ids}].unsqueeze(1)",
            f"torch.take_along_dim({x}, {x}.argmax(-1, keepdim=True), -1) * {x}",
            f"{x}.index_select(0, {x}.sum(-1).topk(3).indices)",
            f"{x}.masked_fill({x} < {x}.median(-1, keepdim=True).values, 0.0)",
            f"{zeros}.index_reduce_(0, {ids}, {x}.detach(), 'amax')[{ids}] + {x}",
        ),
        "s",
    )


def constrained(b: Builder) -> None:
    """A parameter that the forward writes itself: clipped, normalised, a moving average of another."""
    x = b.tensor(norms.rows)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    layer = b.declare(f"nn.Linear({n}, {n}{more})", "linear")
    other = b.declare(f"nn.Linear({n}, {n}{more})", "linear", b.chance(20))
    before = b.let(f"{layer}({x})", "y") if b.chance(50) else ""
    b.features.add("writes")
    with b.under("torch.no_grad()"):
        b.run(
            b.of(
                f"{layer}.weight.clamp_(-0.1, 0.1)",
                f"{layer}.weight.lerp_({other}.weight, 0.5)",
                f"{layer}.weight.copy_(F.normalize({layer}.weight, dim=1))",
                f"{layer}.bias.zero_()",
                f"{layer}.weight[0] = 0.0",
                f"{layer}.weight.mul_(0.5).add_({other}.weight, alpha=0.5)",
                f"{layer}.weight.t().mul_(2)",
                f"torch.clamp({layer}.weight, min=0, out={layer}.weight)",
            )
        )
    after = b.let(f"{layer}({x})", "y")
    b.let(b.of(f"{after} + {before or x}", f"{other}({after})", f"torch.cat([{after}, {before or x}], -1)"))


def same_layers(b: Builder) -> None:
    """Layers in lists and dicts, some of them called more than once."""
    x = b.tensor(norms.rows)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    b.features.add("shared")
    style = b.pick(4)
    if style == 0:
        layer, h = b.declare(f"nn.Linear({n}, {n}{more})", "linear"), b.let(f"{x} * 1")
        b.run(
            f"for _ in range(3): {h} = " + b.of(f"F.relu({layer}({h})) + {h}", f"{layer}({h})", f"{h} * {layer}({h})")
        )
        b.unread += [] if h in b.unread else [h]
    elif style == 1:
        layers = b.declare(f"nn.ModuleList([nn.Linear({n}, {n}{more}) for _ in range(3)])", "layers")
        b.let(
            b.of(
                f"torch.stack([layer({x}) for layer in {layers}], -2).mean(-2)",
                f"sum(layer({x}) for layer in {layers})",
                f"torch.cat([F.relu({layers}[i % 2]({x})) for i in range(3)], -1)",
                f"{layers}[0]({layers}[1]({layers}[0]({x})))",
            ),
            "o",
        )
    elif style == 2:
        pairs = ", ".join(f"{name!r}: nn.Linear({n}, 8{more})" for name in ("click", "like"))
        heads = b.declare(f"nn.ModuleDict({{{pairs}}})", "heads")
        b.let(
            b.of(
                f"torch.cat([head({x}).sigmoid() for head in {heads}.values()], -1)",
                f"{heads}['click']({x}).sigmoid() * {heads}['like']({x}).sigmoid()",
                f"torch.stack([head({x}) for _, head in sorted({heads}.items())]).prod(0)",
            ),
            "o",
        )
    else:
        layers = b.declare(f"nn.Sequential(nn.Linear({n}, {n}{more}), nn.ReLU(), nn.Linear({n}, {n}{more}))", "mlp")
        b.let(b.of(f"{layers}[:2]({x}) + {layers}({x})", f"{layers}({layers}({x}))", f"{layers}[2]({layers}[0]({x}))"))


STEPS = {
    "attention_module": (attention_module, 3),
    "target_attention": (target_attention, 3),
    "pointwise_attention": (pointwise_attention, 3),
    "transformed": (transformed, 2),
    "letters": (letters, 3),
    "dense": (dense, 3),
    "ordered": (ordered, 2),
    "constrained": (constrained, 2),
    "same_layers": (same_layers, 3),
}
