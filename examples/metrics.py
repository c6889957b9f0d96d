"""How good a model's probabilities are, and how long its calls take."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy


def auc(logits: Tensor, labels: Tensor) -> float:
    """The chance that a random positive is ranked above a random negative; ties count one half. Raises ValueError for
    NaN, which has no rank, and for labels of one kind."""
    wrong = [int(of.isnan().sum()) for of in (logits, labels)]
    if any(wrong):
        raise ValueError(f"AUC needs numbers, got NaN in {wrong[0]} logits and {wrong[1]} labels")
    _, place, counts = logits.double().unique(return_inverse=True, return_counts=True)
    below = counts.cumsum(0) - counts
    rank = (below + (counts.double() + 1) / 2)[place]  # mean rank of each group of equals, from 1
    positive = labels > 0.5
    ups, downs = int(positive.sum()), int((~positive).sum())
    if not ups or not downs:
        raise ValueError("AUC needs both positive and negative labels")
    return float((rank[positive].sum() - ups * (ups + 1) / 2) / (ups * downs))


def log_loss(logits: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats, in double precision."""
    return float(binary_cross_entropy(logits.double().sigmoid(), labels.double()))


def normalized_entropy(logits: Tensor, labels: Tensor) -> float:
    """NE: log loss over that of always predicting the base rate. Below 1 the model knows something."""
    rate = labels.double().mean()
    entropy = -(torch.special.xlogy(rate, rate) + torch.special.xlogy(1 - rate, 1 - rate))
    return log_loss(logits, labels) / float(entropy)


def quality(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """AUC, log loss and NE by name."""
    return {
        "auc": auc(logits, labels),
        "logloss": log_loss(logits, labels),
        "ne": normalized_entropy(logits, labels),
    }


def fastest(call: Callable[[], object], count: int = 2) -> float:
    """Seconds of the fastest of some calls; of one that was interrupted what the process worked."""
    times = []
    for _ in range(count):
        worked, start = time.process_time(), time.perf_counter()
        call()
        times += [time.perf_counter() - start, time.process_time() - worked]
    return min(times)


class Race:
    """Times variants of one computation fairly on a machine that others use too.

    Every round runs every variant once, in an order drawn anew, so that a slow spell hits all alike and nobody always
    follows the same one (whose memory and clock it would inherit). Medians then describe each variant, and the median
    of the ratios within rounds compares two. clock: gives seconds.
    """

    def __init__(
        self, variants: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.variants, self.clock = dict(variants), clock
        self.times: dict[str, list[float]] = {name: [] for name in variants}

    def rounds(self, count: int, warm_up: int = 1) -> Iterator[int]:
        """Runs `count` rounds after some untimed ones, yielding the number of each; exhaust it to run them all."""
        names, order = list(self.variants), random.Random(0)
        for number in range(-warm_up, count):
            for name in order.sample(names, len(names)):
                start = self.clock()
                self.variants[name]()
                if number >= 0:
                    self.times[name].append(self.clock() - start)
            if number >= 0:
                yield number

    def ms(self, name: str) -> float:
        """Median milliseconds of one call."""
        return 1e3 * median(self.times[name])

    def speedup(self, name: str, over: str) -> float:
        """How many times faster `name` is than `over`: the median of the rounds' ratios."""
        return median(b / a for a, b in zip(self.times[name], self.times[over], strict=True))
