"""Running statistics of one operand of a GEMM over the batches of a probe.

Exact for every value: counts, amax, least, zero rows, what is not finite, what overflows fp16. From a uniform sample of
rows where the operand is large: moments, quantiles, underflow, dynamic range, the distribution. Small operands are
measured whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from datasketches import tdigest_float
from torch import Tensor

from loka_compile.kernels.quantize.quantize import AMAX_FLOOR, LARGEST
from loka_compile.probe.distribution import Reservoir, generator_for, sample_rows
from loka_compile.probe.models import Kind, Model, checked, learn, name_of

QUANTILES = (0.5, 0.9, 0.99, 0.999)
FP16_MAX = 65504.0
DIGEST_K = 200
"""Size of the t-digest of magnitudes (Apache DataSketches): ranks are right to about 1 % in the middle, better at the
ends. It is deterministic, unlike the KLL sketch there."""
E4M3_ZERO = 2.0**-10
"""Magnitudes up to here become zero in e4m3: half its smallest number, ties to even."""


@dataclass(frozen=True)
class OperandStats:
    """A probe's observations of one operand.

    rows: slices along the contraction, all of whose values share a scale in row scaling; zero_rows of them are all 0.
    values: elements; non_finite of them are inf or NaN, fp16_overflows are finite and beyond fp16's range.
    mean, std, kurtosis (3 for a normal distribution): of the finite values. amax: their largest magnitude. least: the
    smallest of them, 0 before the first. quantiles: of the magnitudes, at QUANTILES.
    fp8_underflow: share of the nonzero values that one e4m3 scale a tensor turns into zeros.
    dynamic_range: octaves between the smallest nonzero magnitude and amax.
    distribution: None where no finite row was seen. model: its name, as in models.py. fallback: why the operand's own
    model was given up for stored rows, "" if it was not.
    """

    rows: int = 0
    values: int = 0
    mean: float = 0.0
    std: float = 0.0
    kurtosis: float = 0.0
    amax: float = 0.0
    quantiles: tuple[float, ...] = (0.0,) * len(QUANTILES)
    zero_rows: int = 0
    non_finite: int = 0
    fp16_overflows: int = 0
    fp8_underflow: float = 0.0
    dynamic_range: float = 0.0
    least: float = 0.0
    distribution: Model | None = None
    fallback: str = ""

    @property
    def model(self) -> str:
        return name_of(self.distribution) if self.distribution is not None else ""


@dataclass(frozen=True)
class Moments:
    """Count, mean, and the sums of the 2nd, 3rd and 4th powers of the distances from it."""

    n: float = 0.0
    mean: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0

    @classmethod
    def of(cls, values: Tensor, n: float) -> Moments:
        """Moments of `n` values of which these, in float64, are a sample (or all)."""
        if values.numel() == 0 or n == 0:
            return cls()
        centred = values - values.mean()
        square = centred.square()
        powers = (square.mean(), (square * centred).mean(), square.square().mean())
        return cls(n, values.mean().item(), *(n * power.item() for power in powers))

    def merge(self, other: Moments) -> Moments:
        """Moments of the union (Chan et al. 1979; the higher ones Pébay 2008, SAND2008-6212, eq. 2.1)."""
        a, b = self, other
        n = a.n + b.n
        if n == 0:
            return self
        d = b.mean - a.mean
        return Moments(
            n,
            a.mean + d * b.n / n,
            a.m2 + b.m2 + d**2 * a.n * b.n / n,
            a.m3 + b.m3 + d**3 * a.n * b.n * (a.n - b.n) / n**2 + 3 * d * (a.n * b.m2 - b.n * a.m2) / n,
            a.m4
            + b.m4
            + d**4 * a.n * b.n * (a.n**2 - a.n * b.n + b.n**2) / n**3
            + 6 * d**2 * (a.n**2 * b.m2 + b.n**2 * a.m2) / n**2
            + 4 * d * (a.n * b.m3 - b.n * a.m3) / n,
        )

    @property
    def std(self) -> float:
        return math.sqrt(self.m2 / self.n) if self.n else 0.0

    @property
    def kurtosis(self) -> float:
        """0 where nothing varies."""
        return self.n * self.m4 / self.m2**2 if self.m2 > 0 and self.m2**2 > 0 else 0.0


class OperandStatistics:
    """Accumulates one operand, ([batch,] R, C), over calls.

    contraction: the dimension the GEMM sums over, -1 or -2. samples: the one its independent samples run along. kind:
    what it is, which says how its distribution is learned.
    """

    def __init__(self, contraction: int, samples: int, generator: torch.Generator, kind: Kind = "activation") -> None:
        self.contraction, self.samples, self.generator, self.kind = contraction, samples, generator, kind
        self.moments, self.reservoir = Moments(), Reservoir()
        self.learner: Any = None
        self.digest = tdigest_float(DIGEST_K).serialize()  # bytes: the library complains of objects left at exit
        self.least = math.inf
        self.rows = self.values = self.zero_rows = self.non_finite = self.fp16_overflows = 0
        self.amax, self.smallest = 0.0, math.inf
        self.nonzero = self.underflown = 0.0

    def add(self, x: Tensor) -> float:
        """Measure one more tensor; returns its largest finite magnitude."""
        x = x.detach()
        self.rows += x.numel() // x.shape[self.contraction] if x.shape[self.contraction] else 0
        self.values += x.numel()
        if x.numel() == 0:
            return 0.0
        magnitude = x.abs()
        slices = magnitude.amax(dim=self.contraction)
        amax, bad = slices.max().item(), 0
        if not math.isfinite(amax):
            finite = magnitude.isfinite()
            bad = x.numel() - int(finite.sum())
            magnitude = magnitude.where(finite, 0.0)
            amax = magnitude.max().item()
        if amax > FP16_MAX:
            self.fp16_overflows += int((magnitude > FP16_MAX).sum())
        self.zero_rows += int((slices == 0).sum())
        self.non_finite += bad
        self.amax = max(self.amax, amax)
        least = x.amin().item() if not bad else x.where(x.isfinite(), math.inf).amin().item()
        self.least = min(self.least, least)
        self._sample(x, x.numel() - bad, amax)
        return amax

    def _sample(self, x: Tensor, finite: int, amax: float) -> None:
        """The statistics that a sample of rows will do for, weighted by the `finite` values it stands for."""
        rows, keys = sample_rows(x, self.samples, self.generator)
        self.reservoir.add(rows, keys)
        self._learn(x, rows)
        values = rows[rows.isfinite()].double()
        self.moments = self.moments.merge(Moments.of(values, finite))
        digest = tdigest_float.deserialize(self.digest)
        digest.update(values.abs().float().numpy())
        self.digest = digest.serialize()
        nonzero = values[values != 0].abs()
        if len(nonzero) == 0:
            return
        weight = finite / len(values)
        scale = max(amax, AMAX_FLOOR) / LARGEST[torch.float8_e4m3fn]
        self.nonzero += weight * len(nonzero)
        self.underflown += weight * int((nonzero <= E4M3_ZERO * scale).sum())
        self.smallest = min(self.smallest, nonzero.min().item())

    def _learn(self, x: Tensor, rows: Tensor) -> None:
        """A weight is followed whole, of anything else a sample will do."""
        if self.kind == "weight" and x.dim() == 2:
            rows = (x.T if self.samples == -1 else x).float().cpu()
        rows = rows[rows.isfinite().all(dim=1)]
        if not rows.numel():
            return
        if self.learner is None:
            self.features = rows.shape[1]
            self.learner = learn(self.kind, self.features, self.generator)
        if rows.shape[1] == self.features:  # another one (a sequence length that varies) stays out
            self.learner.add(rows)

    def _distribution(self) -> tuple[Model | None, str]:
        if self.learner is None or not len(self.reservoir.rows):
            return None, ""
        least = self.least if math.isfinite(self.least) else 0.0
        return checked(self.learner.result(), self.reservoir.rows, self.amax, least, generator_for(0, "check"))

    def result(self) -> OperandStats:
        digest = tdigest_float.deserialize(self.digest)
        quantiles = [0.0 if digest.is_empty() else digest.get_quantile(level) for level in QUANTILES]
        distribution, fallback = self._distribution()
        return OperandStats(
            rows=self.rows,
            values=self.values,
            mean=self.moments.mean,
            std=self.moments.std,
            kurtosis=self.moments.kurtosis,
            amax=self.amax,
            quantiles=tuple(float(value) for value in quantiles),
            zero_rows=self.zero_rows,
            non_finite=self.non_finite,
            fp16_overflows=self.fp16_overflows,
            fp8_underflow=self.underflown / self.nonzero if self.nonzero else 0.0,
            dynamic_range=math.log2(self.amax / self.smallest) if 0 < self.smallest <= self.amax else 0.0,
            least=self.least if math.isfinite(self.least) else 0.0,
            distribution=distribution,
            fallback=fallback,
        )
