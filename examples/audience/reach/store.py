"""A sample in a folder: a manifest, and one Parquet file a shard, each with its checksum.

Rows go to the shards in turn, group by group, so that any of m shards holds a fair share of every group: without one of
them the others still are an unbiased sample of 1 - 1/m of the rows. All rows of a user lie in one shard.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from examples.audience.reach import keys
from examples.audience.reach import model as models
from examples.audience.reach.columns import GROUP, GROUP_SIZE, KEY, STRATUM, WEIGHT
from examples.audience.reach.draw import Drawn
from examples.audience.reach.manifest import NAME, SHARD, Manifest, ShardFile, load, written
from examples.audience.reach.model import Model
from examples.audience.reach.schema import AudienceError

MODEL = "model.npz"


def save(drawn: Drawn, model: Model, manifest: Manifest, folder: Path, shards: int) -> Manifest:
    """Write the sample beside `folder` and move it there when it is whole: nobody sees half of one.

    Raises AudienceError where it cannot be written, as on a full disk; the sample that was there stays.
    """
    with naming(folder):
        usable(folder, shards)
        _written(drawn, model, manifest, folder, shards)
    return load(folder)


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Errors of the disk as one that names the folder."""
    try:
        yield
    except OSError as error:
        raise AudienceError(f"{folder} cannot be written, what was there is as it was: {error}") from None


def usable(folder: Path, shards: int) -> None:
    """Raises AudienceError where a sample would replace something that is none."""
    if shards < 1:
        raise AudienceError(f"a sample has at least 1 shard, not {shards}")
    if not folder.exists():
        return
    with _alone(folder.parent):
        free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        if not free and not (folder / NAME).exists():
            raise AudienceError(f"{folder} is there and holds no sample, and would be replaced; name another folder")


def _written(drawn: Drawn, model: Model, manifest: Manifest, folder: Path, shards: int) -> None:
    groups = drawn.rows[GROUP].to_numpy()
    owner = groups % shards if manifest.users else np.arange(len(groups)) % shards
    table = drawn.rows.append_column(GROUP_SIZE, pa.array(drawn.sizes[groups])).drop_columns([KEY, STRATUM])
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        found = {}
        for shard in range(shards):
            name = SHARD.format(shard)
            own = table.filter(pa.array(owner == shard))
            pq.write_table(own, made / name)
            found[name] = ShardFile(keys.checksum(made / name), len(own), float(pc.sum(own[WEIGHT]).as_py() or 0))
        models.save(model, made / MODEL)
        named = {"shards": found, "model": keys.checksum(made / MODEL)}
        whole = replace(manifest, rows=len(table), groups=len(drawn.sizes), **named)
        (made / NAME).write_text(written(whole), encoding="utf-8")
        with _alone(folder.parent):
            _swap(made, folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """While nobody else swaps a sample in that folder. It is the folder itself that is locked: no file is left over."""
    own = None
    try:
        with suppress(OSError):  # some network disks lock no folders; a swap there has its own error
            own = os.open(parent, os.O_RDONLY)
            fcntl.flock(own, fcntl.LOCK_EX)
        yield
    finally:
        if own is not None:
            os.close(own)


def _swap(made: Path, folder: Path) -> None:
    """Put `made` where `folder` is. The old one is aside for the moment between two renames, and then gone."""
    if not folder.exists():
        made.rename(folder)
        return
    aside = made.with_name(f"{made.name}.old")
    folder.rename(aside)
    try:
        made.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def read_model(folder: Path, manifest: Manifest) -> Model:
    """What the whole population says. Raises AudienceError for a file that is missing or not what was written."""
    path = folder / MODEL
    if not path.exists() or keys.checksum(path) != manifest.model:
        raise AudienceError(f"{path} is missing, or not what the manifest says it was; build the sample again")
    return models.load(path, manifest.design)


def read_shard(folder: Path, manifest: Manifest, name: str) -> pa.Table:
    """A shard's rows. Raises AudienceError for one that is missing or is not what was written."""
    path = folder / name
    if not path.exists():
        raise AudienceError(f"{path} is missing; build the sample again, or serve without it")
    if keys.checksum(path) != manifest.shards[name].checksum:
        raise AudienceError(f"{path} is not what the manifest says it was when written; build the sample again")
    return pq.read_table(path)
