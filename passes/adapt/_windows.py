"""Attention to a window, in the three forms that windowed_attention puts into a graph. All give the same values.

graph/insert.py writes these functions into Dynamo's graph. It gives them proxies for tensors, so they may read sizes
but not branch on them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from loka_compile.graph.insert import constant


def in_slices(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    window: int,
    causal: bool,
    scale: float | None,
    boolean: bool,
    device: Any,
    t: int,
) -> Any:
    """in_blocks for a known length t: one attention a block, on slices of k, v and the mask, so nothing is copied."""
    outs, bands = [], {}
    for first in range(0, t, window):
        rows, low = min(window, t - first), max(0, first - window)
        columns = (first + rows if causal else min(t, first + rows + window)) - low
        shape = rows, first - low, columns
        if shape not in bands:  # most blocks share one shape
            row = constant(q, torch.arange, first - low, first - low + rows, device=device).unsqueeze(1)
            bands[shape] = _band(row - constant(q, torch.arange, columns, device=device), window, causal)
        allowed = bands[shape]
        if mask is not None:
            on_keys = mask.narrow(3, low, columns)
            allowed = allowed & on_keys if boolean else torch.where(allowed, on_keys, float("-inf"))
        queries, keys, values = q.narrow(2, first, rows), k.narrow(2, low, columns), v.narrow(2, low, columns)
        outs.append(F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, scale=scale))
    return torch.cat(outs, 2)


def in_blocks(
    q: Any, k: Any, v: Any, mask: Any, window: int, causal: bool, scale: float | None, boolean: bool, device: Any
) -> Any:
    """Attention to positions at most `window` away. q, k, v (B, H, T, d); mask of keys (B | 1, H | 1, 1, T).

    The trick: T is padded to whole blocks of w queries. Block b of the queries meets blocks b-1, b and b+1 of the keys,
    which are concatenated to 3w columns; a band mask cuts them down to the window. boolean: the mask is True for keys
    to look at; otherwise it is added to the scores.
    """
    t = q.shape[2]
    short = -t % window  # positions that T lacks to whole blocks
    neighbours = 2 if causal else 3
    behind = 0 if causal else window

    def around(x: Any, dim: int) -> Any:
        """Blocks along `dim`, each concatenated with its neighbours: (..., T/w, neighbours * w, ...)."""
        x = x.unflatten(dim, (-1, window))
        last = neighbours - 1
        parts = [x.narrow(dim, at, x.shape[dim] - last) for at in range(neighbours)]
        return torch.cat(parts, dim + 1)

    def keys(x: Any) -> Any:
        x = F.pad(x.transpose(1, 2), (0, 0, 0, 0, window, short + behind))
        return around(x, 1).flatten(0, 1).transpose(1, 2)

    queries = F.pad(q.transpose(1, 2), (0, 0, 0, 0, 0, short)).unflatten(1, (-1, window)).flatten(0, 1).transpose(1, 2)
    row = constant(q, torch.arange, window, device=device).unsqueeze(1)
    column = constant(q, torch.arange, -window, (neighbours - 1) * window, device=device)
    band = _band(row - column, window, causal)
    start = constant(q, torch.arange, 0, t + short, window, device=device).unsqueeze(1).unsqueeze(2)
    exists = (start + column >= 0) & (start + column < t)
    allowed = band & (exists | (start + row >= t))  # padded rows may see padded keys: a row that sees none gives NaN
    allowed = allowed.unsqueeze(1).unsqueeze(0)  # (1, T/w, 1, w, 3w)
    if mask is not None:
        fill = False if boolean else 0.0
        on_keys = around(F.pad(mask.squeeze(2), (window, short + behind), value=fill), 2)  # (B | 1, H | 1, T/w, 3w)
        on_keys = on_keys.transpose(1, 2).unsqueeze(3)
        allowed = allowed & on_keys if boolean else torch.where(allowed, on_keys, float("-inf"))
    allowed = allowed.expand(q.shape[0], -1, -1, -1, -1).flatten(0, 1)
    out = F.scaled_dot_product_attention(queries, keys(k), keys(v), attn_mask=allowed, scale=scale)
    out = out.transpose(1, 2).unflatten(0, (q.shape[0], -1)).flatten(1, 2)
    return out.narrow(1, 0, t).transpose(1, 2)


def under_a_mask(
    q: Any, k: Any, v: Any, mask: Any, window: int, causal: bool, scale: float | None, boolean: bool, device: Any
) -> Any:
    """The same with one mask over all keys, for sequences of no more blocks than a block has neighbours."""
    at = constant(q, torch.arange, q.shape[2], device=device)
    band = _band(at.unsqueeze(1) - at, window, causal)
    if mask is not None:
        band = band & mask if boolean else torch.where(band, mask, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=band, scale=scale)


def _band(away: Any, window: int, causal: bool) -> Any:
    """Whether a query looks at a key; away: the query's position minus the key's."""
    return (away.abs() <= window) & (away >= 0) if causal else away.abs() <= window
