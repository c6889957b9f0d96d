"""The learned distribution of an operand: a Gaussian over its features, from a bounded sample of its rows.

Rows are taken as independent (recommendation models avoid operations across the batch), so one mean and one
covariance over the features describe an operand (LoKA Probe). The covariance is never formed: with n centred rows R,
n x F, the draw mean + g @ R / sqrt(n - 1), g ~ N(0, I_n), has exactly their sample covariance, for F of any size.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from loka_compile.graph.site import Site

ROWS, MAX_ROWS = 256, 1024
"""Rows kept while measuring; more of them where rows are short, so that quantiles have values to rest on."""
VALUES, MAX_VALUES = 2**16, 2**21
"""Values worth keeping of one operand, and the most that are kept."""
SAVED_ROWS = 128
"""Rows a profile stores: the rank of the covariance. In bfloat16, 1024 features are 256 KiB."""


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
    keys = torch.rand(batch * samples, generator=generator, dtype=torch.float64)
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
        self.rows = torch.empty(0, 0)
        self.keys = torch.empty(0, dtype=torch.float64)

    def add(self, rows: Tensor, keys: Tensor) -> None:
        if rows.numel() == 0 or (self.rows.numel() and rows.shape[1] != self.rows.shape[1]):
            return
        finite = rows.isfinite().all(dim=1)
        rows, keys = rows[finite], keys[finite]
        if self.rows.numel():
            rows, keys = torch.cat([self.rows, rows]), torch.cat([self.keys, keys])
        kept = keys.argsort()[: capacity(rows.shape[1])]
        self.rows, self.keys = rows[kept], keys[kept]

    def gaussian(self) -> Gaussian | None:
        """None where no row was seen."""
        if self.rows.numel() == 0:
            return None
        rows = self.rows[:SAVED_ROWS].double()
        limit = torch.finfo(torch.bfloat16).max
        centred = (rows - rows.mean(dim=0)).clamp(-limit, limit).bfloat16()
        return Gaussian(self.rows.double().mean(dim=0).float(), centred)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """mean: (F,) float32. rows: (n, F) bfloat16, centred; their sample covariance is the distribution's."""

    mean: Tensor
    rows: Tensor

    @property
    def features(self) -> int:
        return len(self.mean)

    def draw(self, count: int, generator: torch.Generator, features: Tensor | None = None) -> Tensor:
        """`count` independent rows, (count, F) in float32; only the given features if there are any."""
        mean, rows = (self.mean, self.rows) if features is None else (self.mean[features], self.rows[:, features])
        noise = torch.randn(count, len(rows), generator=generator)
        return mean + noise @ rows.float() / math.sqrt(max(1, len(rows) - 1))
