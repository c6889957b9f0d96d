"""Cells of the matrix of ways of use that take several processes: one start of these for all of them."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from tests.online.cells import Cell, cell
from tests.online.columns import COLUMNS

LONGEST = timedelta(seconds=120)
"""That one rank waits for another: a cell that hangs fails, and so do those behind it."""


def cells(wanted: Sequence[tuple[str, str]]) -> list[Cell]:
    """The cells, by as many processes as their columns take; what any rank finds wrong is wrong."""
    found = []
    for ranks in sorted({COLUMNS[column].ranks for _, column in wanted}):
        here = [(row, column) for row, column in wanted if COLUMNS[column].ranks == ranks]
        found += _by_processes(here, ranks) if ranks > 1 else _one_by_one(here, ranks)
    return found


def _one_by_one(wanted: Sequence[tuple[str, str]], ranks: int) -> list[Cell]:
    if not ranks:
        return [_said(*each) for each in wanted]
    with tempfile.TemporaryDirectory() as folder, _group(folder, 0, 1):
        return [_said(*each) for each in wanted]


def _by_processes(wanted: Sequence[tuple[str, str]], ranks: int) -> list[Cell]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (folder, ranks, list(wanted)), nprocs=ranks)
        by_rank = [json.loads((Path(folder) / f"rank{rank}").read_text()) for rank in range(ranks)]
    return [_worst([Cell(**each) for each in ranked]) for ranked in zip(*by_rank, strict=True)]


def _said(row: str, column: str) -> Cell:
    """The cell, said as soon as it is known: where one of many hangs, the last line tells which."""
    start = time.process_time()
    found = cell(row, column)
    seconds = time.process_time() - start
    off = f"outputs {found.outputs:.4f}, gradients {found.gradients:.4f} off"
    said = f"{row} - {column}: {found.wrong or found.shows} ({off}, {seconds:.0f} s of CPU)"
    print(said, file=sys.stderr, flush=True)
    return found


def _worst(ranked: Sequence[Cell]) -> Cell:
    return next((each for each in ranked if each.wrong), ranked[0])


def _rank(rank: int, folder: str, ranks: int, wanted: Sequence[tuple[str, str]]) -> None:
    os.environ["LOKA_CACHE_DIR"] = f"{folder}/loka{rank}"
    with _group(folder, rank, ranks):
        found = [asdict(_said(*each)) for each in wanted]
        dist.barrier()
    (Path(folder) / f"rank{rank}").write_text(json.dumps(found))


@contextmanager
def _group(folder: str, rank: int, ranks: int) -> Iterator[None]:
    method = f"file://{folder}/meeting"  # no port that another test may take
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=ranks, timeout=LONGEST)
    try:
        yield
    finally:
        dist.destroy_process_group()
