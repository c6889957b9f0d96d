"""Kunlun ("Kunlun: Establishing Scaling Laws for Massive-Scale Recommendation Systems"): one model of a request's
context and of the user's event sequences, which inform each other in every layer.

Every module runs every layer here; what may be skipped is decided when the model is compiled (docs/compskip.md). With
X the context's tokens and S one source's sequence, layer l computes

    X_sum = WeightGeneration(X)                       the context, condensed
    S     = SelfAttention(GDPA(X_sum, S))             each source, in its own width
    H     = HSP(S)                                    the sequence, condensed
    X     = WukongExperts([X_sum, H of every source])

The sequences go first, so that no layer's work on them is without effect. A source that has fewer layers than the
model keeps its sequence from then on and is still pooled.

Shapes: B requests, T tokens of a sequence, d the context's width, d_s the source's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.kunlun.attention import SelfAttention
from examples.kunlun.data import CONTEXT, STARS, Events
from examples.kunlun.interaction import WeightGeneration, WukongExperts
from examples.kunlun.pffn import GDPA, FeedForward
from examples.kunlun.pooling import HSP, PMA
from examples.kunlun.rote import angles, log_time
from examples.kunlun.sizes import Size, SourceSize
from examples.models.wukong import mlp
from examples.movielens import FIELDS

ITEM = FIELDS.index("item")


class Kunlun(nn.Module):
    """Context and event sequences to the logit of a like.

    cardinalities  number of ids of each context field; id 0 stands for "unknown"
    genres         number of genres
    sources        names of the event sources, as `size.sources` has them
    id_dropout     per field, how often training replaces an id with 0
    gdpa, hsp      False puts what the ablation compares with in their place: a feed-forward network, PMA
    """

    def __init__(
        self,
        cardinalities: tuple[int, ...],
        genres: int,
        size: Size,
        sources: tuple[str, ...],
        *,
        id_dropout: tuple[float, ...] | None = None,
        dropout: float = 0.1,
        gdpa: bool = True,
        hsp: bool = True,
    ) -> None:
        super().__init__()
        starts = torch.tensor((0, *cardinalities[:-1])).cumsum(0)
        self.register_buffer("starts", starts, persistent=False)  # all fields share one table
        self.register_buffer("id_dropout", torch.tensor(id_dropout or (0.0,) * len(FIELDS)), persistent=False)
        self.item_start = int(starts[ITEM])
        self.table = nn.Embedding(sum(cardinalities), size.width)
        self.stars = nn.Embedding(STARS, size.width)
        self.genres = nn.Linear(genres, size.width, bias=False)
        for table in (self.table, self.stars, self.genres):
            nn.init.normal_(table.weight, std=0.01)
        by_name = dict(zip(sources, size.sources, strict=True))
        self.tokenize = nn.ModuleDict({name: EventTokens(size.width, of) for name, of in by_name.items()})
        self.head_widths = [of.width // of.heads for of in size.sources]
        inner = size.summary + sum(of.tokens for of in size.sources)
        self.layers = nn.ModuleList(
            Layer(CONTEXT if depth == 0 else inner, inner, depth, size, by_name, dropout, gdpa, hsp)
            for depth in range(size.layers)
        )
        self.head = mlp(inner * size.width, *size.head, 1, dropout=dropout)

    def forward(self, ids: Tensor, genres: Tensor, events: tuple[Events, ...]) -> Tensor:
        """ids (B, fields) int64, genres (B, G) float32, one Events a source; logits (B,)."""
        if self.training:
            ids = ids.masked_fill(torch.rand_like(ids, dtype=torch.float) < self.id_dropout, 0)
        x = torch.cat([self.table(ids + self.starts), self.genres(genres).unsqueeze(1)], dim=1)  # (B, CONTEXT, d)
        sequences, places, masks = [], [], []
        for tokenize, width, source in zip(self.tokenize.values(), self.head_widths, events, strict=True):
            tau = log_time(source.seconds)
            films = self.table(source.items + self.item_start) + self.stars(source.stars) + self.genres(source.genres)
            sequences.append(tokenize(films, tau))
            places.append(angles(torch.arange(tau.shape[1], device=tau.device), tau, width))
            masks.append(source.mask)
        for layer in self.layers:
            x, sequences = layer(x, sequences, places, masks)
        return self.head(x.flatten(1)).squeeze(1)


class EventTokens(nn.Module):
    """An MLP from what is known of an event to a token: film and stars, when it was, how long after the one before."""

    def __init__(self, width: int, of: SourceSize) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.when = nn.Linear(2, width)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(width, of.width))

    def forward(self, films: Tensor, tau: Tensor) -> Tensor:
        """films (B, T, d) and tau (B, T) to (B, T, d_s)."""
        gap = tau.diff(dim=1, prepend=tau[:, :1])
        return self.mlp(self.norm(films) + self.when(torch.stack([tau, gap], dim=-1)))


class Layer(nn.Module):
    """One layer; see the top of this file. depth counts from 0."""

    def __init__(
        self,
        tokens_in: int,
        tokens: int,
        depth: int,
        size: Size,
        sources: dict[str, SourceSize],
        dropout: float,
        gdpa: bool,
        hsp: bool,
    ) -> None:
        super().__init__()
        self.weight_generation = WeightGeneration(tokens_in, size.summary, size.width)
        self.sources = nn.ModuleDict(
            {name: SourceLayer(of, size, depth < of.layers, gdpa, hsp) for name, of in sources.items()}
        )
        self.interaction = WukongExperts(tokens, size.width, size.experts, size.k, size.hidden, dropout)

    def forward(
        self, x: Tensor, sequences: list[Tensor], places: list[tuple[Tensor, Tensor]], masks: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The context's tokens and every sequence, and both again."""
        x_sum = self.weight_generation(x)
        summaries, after = [x_sum], []
        for source, s, (cos, sin), mask in zip(self.sources.values(), sequences, places, masks, strict=True):
            if source.active:
                s = source.pffn(x_sum, s)
                s = source.attention(s, cos, sin, mask)
            after.append(s)
            summaries.append(source.pool(s, mask))
        return self.interaction(torch.cat(summaries, dim=1)), after


class SourceLayer(nn.Module):
    """What one source has in one layer: pffn and attention where it is still active, and always pool."""

    def __init__(self, of: SourceSize, size: Size, active: bool, gdpa: bool, hsp: bool) -> None:
        super().__init__()
        self.active = active
        if active:
            personal = GDPA(of.width, of.heads, of.keys, size.summary, size.width)
            self.pffn = personal if gdpa else FeedForward(of.width, of.heads * of.keys)
            self.attention = SelfAttention(of.width, of.heads)
        if hsp:
            self.pool = HSP(of.width, of.heads, of.seeds, of.tokens, of.rank, size.width)
        else:
            self.pool = PMA(of.width, of.heads, of.tokens, size.width)
