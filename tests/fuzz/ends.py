"""What stands at both ends of a model: ids that are hashed, and losses; norms and pooling of other kinds; shuffles."""

from __future__ import annotations

from tests.fuzz import norms
from tests.fuzz.blocks import stack_of
from tests.fuzz.build import Builder
from tests.fuzz.models import matrix


def hashed(b: Builder) -> None:
    """Ids that are counted into tables: hashes, quotient and remainder, one table for all fields."""
    ids = b.add_input("ids", b.of("torch.randint(0, 1000, (batch,))", "torch.randint(0, 1000, (batch, 3))"))
    more = "" if b.dtype.itemsize == 4 else f", dtype={b.dtype}"
    table, rest = (b.declare(f"nn.Embedding(20, {b.width}{more})", "table", b.chance(30)) for _ in range(2))
    b.let(
        b.of(
            f"{table}({ids} % 20)",
            f"{table}({ids} // 50) * {rest}({ids} % 20)",
            f"{table}(({ids} * 31 + 7) % 20) + {rest}({ids}.clamp(0, 19))",
            f"torch.cat([{table}({ids} % 20), {rest}({ids}.bitwise_xor(5) % 20)], -1)",
            f"F.embedding({ids}.remainder(20), {table}.weight, padding_idx=0)",
            f"{table}.weight.index_select(0, {ids}.flatten() % 20)",
            f"{table}(({ids} % 20).masked_fill({ids} > 500, 0)) * ({ids} <= 500).unsqueeze(-1)",
            f"F.embedding_bag({ids}.view({ids}.shape[0], -1) % 20, {table}.weight, mode='max')",
            f"{table}({ids} % 20) + {table}.weight.mean(0)",
        ),
        "e",
    )


def loss(b: Builder) -> None:
    """Losses that the forward gives itself."""
    x = b.tensor(matrix)
    n, more = b.value(x).shape[-1], norms.typed(b, x)
    label = b.add_input("label", "(torch.rand(batch) > 0.5).float()")
    logits = b.let(f"{b.declare(f'nn.Linear({n}, 4{more})', 'head')}({x})", "logits")
    one = f"{logits}[:, 0].float()"
    b.let(
        b.of(
            f"F.binary_cross_entropy_with_logits({one}, {label})",
            f"F.cross_entropy({logits}.float(), {label}.long(), label_smoothing=0.1)",
            f"F.kl_div({logits}.log_softmax(-1), {logits}.detach().flip(0).softmax(-1), reduction='batchmean')",
            f"F.binary_cross_entropy({one}.sigmoid(), {label}, reduction='none') * {label}",
            f"-(({label} * 2).softmax(0) * {one}.log_softmax(0)).sum()",
            f"F.softplus(-({one}.unsqueeze(0) - {one}.unsqueeze(1))) * ({label}.unsqueeze(0) > {label}.unsqueeze(1))",
            f"F.huber_loss({one}, {label}) + {one}.square().mean() * 0.01",
            f"F.cross_entropy({logits}, {label}.long(), reduction='none').pow(2)",
            f"F.mse_loss({logits}.sigmoid().prod(-1).float(), {label})",
            f"(1 - {one}.sigmoid()).pow(2) * F.logsigmoid({one}) * {label}",
        ),
        "l",
    )


DICE = """\
class {name}(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d({n}, eps=1e-3, affine=False{more})
        self.alpha = nn.Parameter(torch.zeros({n}{more}))

    def forward(self, x):
        p = torch.sigmoid(self.bn(x))
        return p * x + (1 - p) * self.alpha * x
"""


def other_norms(b: Builder) -> None:
    """Norms over groups, over several dimensions, over columns; Dice."""
    x = b.tensor(norms.rows)
    value, more = b.value(x), norms.typed(b, x)
    n = value.shape[-1]
    if value.dim() == 3:
        t = value.shape[1]
        b.let(
            b.of(
                f"{b.declare(f'nn.LayerNorm([{t}, {n}]{more})', 'norm')}({x})",
                f"{b.declare(f'nn.GroupNorm(1, {t}{more})', 'norm')}({x})",
                f"F.layer_norm({x}, ({t}, {n}))",
                f"F.rms_norm({x}, ({t}, {n}), eps=1e-5)",
                f"F.instance_norm({x})",
                f"F.layer_norm({x}.mT, ({t},)).mT",
                f"{b.declare(f'nn.BatchNorm1d({t}{more})', 'norm')}({x})",
            ),
            "n",
        )
        return
    name = b.fresh("Dice")
    b.define(DICE.format(name=name, n=n, more=more))
    b.let(
        b.of(
            f"{b.declare(f'{name}()', 'dice')}({x})",
            f"F.normalize({x}, p=1.0, dim=0)",
            f"{b.declare(f'nn.BatchNorm1d({n}, track_running_stats=False{more})', 'norm')}({x})",
            f"{b.declare(f'nn.GroupNorm(4, {n}{more})', 'norm')}({x})",
            f"{b.declare(f'nn.BatchNorm1d({n}, momentum=None{more})', 'norm')}({x})",
            f"({x} - {x}.mean(0)) / ({x}.std(0) + 1e-3)",
            f"{x} / {x}.norm(p=1, dim=-1, keepdim=True).clamp(min=1e-3)",
            f"F.local_response_norm({x}.unsqueeze(1), 3).squeeze(1)",
        ),
        "n",
    )


def windows(b: Builder) -> None:
    """What slides, repeats or pools along a dimension."""
    x = stack_of(b)
    b.let(
        b.of(
            f"{x}.unfold(1, 2, 1).mean(-1)",
            f"F.avg_pool1d({x}, 2)",
            f"F.max_pool1d({x}, 2, stride=1)",
            f"F.adaptive_avg_pool1d({x}, 4)",
            f"{x}.repeat_interleave(2, 1)",
            f"{x}.unfold(-1, 4, 4).amax(-1)",
            f"{x}.tile(1, 2, 1)[:, 1:-1]",
            f"F.interpolate({x}, scale_factor=0.5)",
            f"{x} - F.pad({x}[:, :-1], (0, 0, 1, 0))",
            f"{x}.flip(1).cumsum(1).flip(1)",
            f"torch.cat([{x}[:, :1], {x}[:, 1:] - {x}[:, :-1]], 1)",
        ),
        "w",
    )


def drawn(b: Builder) -> None:
    """Random choices: shuffles, soft samples, whole rows dropped."""
    x = b.tensor(matrix)
    b.features.add("random")
    b.let(
        b.of(
            f"{x}[torch.randperm({x}.shape[0])] + {x}",
            f"F.gumbel_softmax({x}, tau=0.5)",
            f"{x} * torch.bernoulli({x}.detach().sigmoid())",
            f"{x} * (torch.rand({x}.shape[0], 1) > 0.2) / 0.8",
            f"F.alpha_dropout({x}, 0.2, True)",
            f"{x} * torch.empty_like({x}).bernoulli_(0.8)",
            f"{x} + torch.randn({x}.shape[-1], dtype={x}.dtype) * 0.1",
            f"F.dropout1d({x}.unsqueeze(0), 0.3, self.training).squeeze(0)",
            f"F.rrelu({x}, training=self.training)",
        ),
        "r",
    )


STEPS = {
    "hashed": (hashed, 2),
    "loss": (loss, 2),
    "other_norms": (other_norms, 3),
    "windows": (windows, 2),
    "drawn": (drawn, 1),
}
