"""A sample in a folder: a manifest, and one Parquet file a shard, each with its checksum.

Rows go to the shards in turn, group by group, so that any of m shards holds a fair share of every group: without one of
them the others still are an unbiased sample of 1 - 1/m of the rows. All rows of a user lie in one shard.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from examples.audience.reach import keys, seal
from examples.audience.reach import model as models
from examples.audience.reach.design import Design
from examples.audience.reach.draw import Drawn
from examples.audience.reach.measures import Spread
from examples.audience.reach.model import Model
from examples.audience.reach.schema import AudienceError, Feature, Number, Schema

VERSION = 2
MODEL = "model.npz"


@dataclass(frozen=True)
class ShardFile:
    """weight: rows of the population that its rows stand for."""

    checksum: str
    rows: int
    weight: float


@dataclass(frozen=True)
class Manifest:
    """population: rows that the sample stands for. groups: how many. shards: by file name. sources: file -> checksum.

    users: whether users were drawn, at a rate of 1 / weight each, rather than rows in strata. created: seconds since
    1970. model: the checksum of model.npz. measures: what the whole population says of each.
    """

    design: Design
    population: int
    rows: int
    seed: int
    created: float
    groups: int = 0
    shards: dict[str, ShardFile] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    model: str = ""
    measures: dict[str, Spread] = field(default_factory=dict)

    @property
    def schema(self) -> Schema:
        return self.design.schema

    @property
    def cover(self) -> tuple[str, ...]:
        return self.design.cover

    @property
    def users(self) -> bool:
        return self.schema.user is not None

    @property
    def identity(self) -> str:
        """Of the sample's files: two samples have the same only if they are the same."""
        return seal.digest([self.model, {name: each.checksum for name, each in self.shards.items()}])[:12]


def save(drawn: Drawn, model: Model, manifest: Manifest, folder: Path, shards: int) -> Manifest:
    """Write the sample beside `folder` and move it there when it is whole: nobody sees half of one.

    Raises AudienceError where it cannot be written, as on a full disk; the sample that was there stays.
    """
    if shards < 1:
        raise AudienceError(f"a sample has at least 1 shard, not {shards}")
    try:
        _written(drawn, model, manifest, folder, shards)
    except OSError as error:
        raise AudienceError(f"{folder} cannot be written, what was there is as it was: {error}") from None
    return load(folder)


def _written(drawn: Drawn, model: Model, manifest: Manifest, folder: Path, shards: int) -> None:
    groups = drawn.rows["group"].to_numpy()
    owner = groups % shards if manifest.users else np.arange(len(groups)) % shards
    held = np.bincount(groups, minlength=len(drawn.sizes))
    table = drawn.rows.append_column("group size", pa.array(drawn.sizes[groups]))
    table = table.append_column("group rows", pa.array(held[groups])).drop_columns(["key", "stratum"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        found = {}
        for shard in range(shards):
            name = f"shard-{shard:03}.parquet"
            own = table.filter(pa.array(owner == shard))
            pq.write_table(own, made / name)
            found[name] = ShardFile(keys.checksum(made / name), len(own), float(pc.sum(own["weight"]).as_py() or 0))
        models.save(model, made / MODEL)
        named = {"shards": found, "model": keys.checksum(made / MODEL)}
        whole = replace(manifest, rows=len(table), groups=len(drawn.sizes), **named)
        body = asdict(whole) | {"version": VERSION}
        (made / "manifest.json").write_text(json.dumps(seal.sealed(body), indent=1) + "\n", encoding="utf-8")
        _swap(made, folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _swap(made: Path, folder: Path) -> None:
    """Put `made` where `folder` is. The old one is aside for the moment between two renames, and then gone."""
    if not folder.exists():
        made.rename(folder)
        return
    aside = folder.with_name(f".{folder.name}.old.{os.getpid()}")
    folder.rename(aside)
    made.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def load(folder: Path) -> Manifest:
    """The manifest. Raises AudienceError where there is none, or one that cannot be used."""
    path = folder / "manifest.json"
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AudienceError(f"{folder} holds no sample: it has no manifest.json; make one with `build`") from None
    except (OSError, ValueError) as error:
        raise AudienceError(f"{path} cannot be read: {error}; build the sample again") from None
    version = body.get("version") if isinstance(body, dict) else None
    if version != VERSION:
        raise AudienceError(f"{path} is of version {version!r}, this program reads {VERSION}; build the sample again")
    try:
        design = seal.opened(body, path, ("design", "shards", "measures", *_FIELDS))["design"]
        schema = design["schema"]
        made = Schema(
            tuple(Feature(each["name"], tuple(each["values"])) for each in schema["features"]),
            tuple(Number(each["name"], tuple(each["edges"])) for each in schema["numbers"]),
            tuple(schema["measures"]),
            schema["user"],
        )
        shards = {name: ShardFile(**each) for name, each in body["shards"].items()}
        given = {name: tuple(each) for name, each in design["given"].items()}
        trials = tuple(tuple((name, tuple(codes)) for name, codes in trial) for trial in design["trials"])
        margins = tuple(map(tuple, design["margins"]))
        whole = Design(made, tuple(design["cover"]), given, margins, trials)
        measures = {name: Spread(**each | {"powers": tuple(each["powers"])}) for name, each in body["measures"].items()}
        fields = {name: body[name] for name in _FIELDS}
        return seal.verified(Manifest(whole, shards=shards, measures=measures, **fields), path)
    except (KeyError, TypeError, AttributeError) as error:
        raise AudienceError(f"{path} lacks {error}; build the sample again") from None


_FIELDS = ("population", "rows", "seed", "created", "groups", "sources", "model")


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
