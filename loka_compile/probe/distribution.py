"""Sampling an operand's rows: which dimension its independent samples run along, and a bounded uniform sample of them.

Rows are taken as independent (recommendation models avoid operations across the batch), so a distribution over the
features describes an operand (LoKA Probe).
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from loka_compile.spec.site import Site

ROWS, MAX_ROWS = 128, 1024
"""Rows kept while measuring; more of them where rows are short, so that quantiles have values to rest on."""
VALUES, MAX_VALUES = 2**16, 2**17
"""Values worth keeping of one operand, and the most that are kept."""


def capacity(features: int) -> int:
    """How many rows of `features` values a reservoir holds."""
    features = max(1, features)
    wanted = min(max(ROWS, VALUES // features), MAX_ROWS)
    return max(2, min(wanted, MAX_VALUES // features))


def generator_for(seed: int, *names: str) -> torch.Generator:
    """A random generator of its own for every name: what is drawn for a site does not depend on other sites."""
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def sample_dim(site: Site, side: str) -> int:
    """The dimension of an operand along which its independent samples run.

    The batch: rows of the left operand; in grad_weight the contraction, of both. Of a right operand that is a
    weight (or its transpose), the columns.
    """
    if site.role == "grad_weight":
        return -1 if side == "lhs" else -2
    return -2 if side == "lhs" else -1


def sample_rows(x: Tensor, dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """At most `capacity` samples of x, ([batch,] R, C), along `dim`: rows (n, F) in float32, and their keys (n,).

    Every sample gets a uniform random key and the smallest keys stay, so samples of several tensors can be joined:
    the smallest keys of the union are a uniform sample of all.
    """
    x = x if x.dim() == 3 else x.unsqueeze(0)
    x = x.transpose(-1, -2) if dim == -1 else x  # (batch, samples, features)
    batch, samples, features = x.shape
    keys = torch.rand(batch * samples, generator=generator, dtype=torch.float64, device="cpu")
    if len(keys) > capacity(features):
        keys, index = keys.topk(capacity(features), largest=False)
        index = index.to(x.device)
        return x[index // samples, index % samples].float().cpu(), keys
    return x.reshape(-1, features).float().cpu(), keys


class Reservoir:
    """A uniform sample of all rows seen, at most `capacity` of them. Rows that are not finite stay out.

    The first tensor with values fixes the number of features; other ones (a sequence length that varies) stay out.
    """

    def __init__(self) -> None:
        self.rows = torch.empty(0, 0, dtype=torch.float32, device="cpu")
        self.keys = torch.empty(0, dtype=torch.float64, device="cpu")

    def add(self, rows: Tensor, keys: Tensor) -> None:
        if rows.numel() == 0 or (self.rows.numel() and rows.shape[1] != self.rows.shape[1]):
            return
        finite = rows.isfinite().all(dim=1)
        rows, keys = rows[finite], keys[finite]
        if self.rows.numel():
            rows, keys = torch.cat([self.rows, rows]), torch.cat([self.keys, keys])
        kept = keys.argsort()[: capacity(rows.shape[1])]
        self.rows, self.keys = rows[kept], keys[kept]
