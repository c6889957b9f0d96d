"""Random logs of small whole seconds, with ties."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from examples.lattice.zipper.log import Log, log_of


@st.composite
def logs(draw, most: int = 30) -> Log:
    times = sorted(draw(st.lists(st.integers(0, 40), max_size=most)))
    delay = st.one_of(st.integers(0, 30).map(float), st.just(float("inf")))
    delays = draw(st.lists(delay, min_size=len(times), max_size=len(times)))
    seconds = torch.tensor(times, dtype=torch.float64)
    keys = torch.stack([torch.arange(len(times)) % 5, torch.arange(len(times)) % 3], dim=1)
    return log_of(seconds, keys, torch.tensor(delays, dtype=torch.float64))


clocks = st.lists(st.integers(0, 75).map(float), min_size=1, max_size=12).map(sorted)
