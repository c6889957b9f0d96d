"""How large the model is: per event source and overall. The proportions between sources are those of Kunlun's example
(clicks: d 256, 8 heads, 32 tokens, 3 layers; impressions: d 128, 4 heads, 16 tokens, 2 layers), scaled to this CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class SourceSize:
    """One event source. seeds of HSP are condensed to `tokens`; keys are GDPA's; layers that work on the sequence."""

    width: int
    heads: int
    tokens: int
    layers: int
    seeds: int
    keys: int
    rank: int = 4


@dataclass(frozen=True)
class Size:
    """The whole model. An odd number of layers: under CompSkip the last one then still pools what was computed."""

    width: int
    layers: int
    sources: tuple[SourceSize, ...]
    summary: int = 8  # tokens of X_sum
    experts: int = 2
    k: int = 8
    hidden: tuple[int, ...] = (256,)
    head: tuple[int, ...] = (256,)
    max_length: int = 512


def size(width: int, layers: int, *, max_length: int = 512) -> Size:
    """A model of this width: the liked films get all of it, the disliked half, in one layer less."""
    liked = SourceSize(width, heads=max(width // 32, 1), tokens=8, layers=layers, seeds=32, keys=width)
    disliked = replace(
        liked, width=width // 2, heads=max(width // 64, 1), tokens=4, layers=layers - 1, seeds=16, keys=width // 2
    )
    return Size(width, layers, (liked, disliked), hidden=(4 * width,), head=(4 * width,), max_length=max_length)


SIZES = {
    "tiny": size(16, 3, max_length=32),
    "small": size(32, 3, max_length=128),
    "compact": size(48, 3, max_length=256),
    "medium": size(64, 3),
    "large": size(96, 3),
    "huge": size(128, 3),
}


def without_personalisation(of: Size) -> Size:
    """Every source as large as the first."""
    return replace(of, sources=of.sources[:1] * len(of.sources))
