"""What a sample is made of: how it was drawn, its files and their checksums. JSON that has a checksum of itself."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from examples.audience.reach.design import Design
from examples.audience.reach.measures import Spread
from examples.audience.reach.schema import AudienceError, Schema

VERSION = 3
"""2 had neither `share` nor `measures` nor `checksum`, and columns whose names a feature could have."""
NAME = "manifest.json"
SHARD = "shard-{:03}.parquet"


@dataclass(frozen=True)
class ShardFile:
    """weight: rows of the population that its rows stand for."""

    checksum: str
    rows: int
    weight: float


@dataclass(frozen=True)
class Manifest:
    """population: rows that the sample stands for. groups: how many. shards: by file name. sources: file -> checksum.

    share: of the rows that were asked for, at most 1, which a refresh draws again; users are drawn at that rate, with
    all their rows, so `rows` may be any number about it. created: seconds since 1970. model: the checksum of model.npz.
    measures: what the whole population says of each.
    """

    design: Design
    population: int
    rows: int
    seed: int
    created: float
    share: float
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
        files = [self.model, {name: each.checksum for name, each in self.shards.items()}]
        return hashlib.blake2b(json.dumps(files, sort_keys=True).encode(), digest_size=6).hexdigest()


def written(manifest: Manifest) -> str:
    """The manifest as JSON, a line a field."""
    body = {"version": VERSION, **asdict(manifest)}
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in signed(body).items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def signed(body: Mapping[str, Any]) -> dict[str, Any]:
    """With its checksum, which is of all the rest whatever its order and its spaces are."""
    rest = {name: value for name, value in body.items() if name != "checksum"}
    text = json.dumps(rest, sort_keys=True).encode()
    return {**rest, "checksum": hashlib.blake2b(text, digest_size=16).hexdigest()}


def load(folder: Path) -> Manifest:
    """The manifest. Raises AudienceError where there is none, or one that cannot be used."""
    path = folder / NAME
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AudienceError(f"{folder} holds no sample: it has no {NAME}; make one with `build`") from None
    except (OSError, ValueError, RecursionError) as error:
        raise AudienceError(f"{path} cannot be read: {error}; build the sample again") from None
    version = body.get("version") if isinstance(body, dict) else None
    if version != VERSION:
        raise AudienceError(f"{path} is of version {version!r}, this program reads {VERSION}; build the sample again")
    if body.get("checksum") != signed(body)["checksum"]:
        raise AudienceError(
            f"{path} is not what was written: its checksum is of something else; build the sample again"
        )
    try:
        found = _reader(Manifest)({name: body[name] for name in body if name not in ("version", "checksum")})
        _consistent(found)
    except _Unfit as error:
        raise AudienceError(f"{path}: {error}; build the sample again") from None
    return found


class _Unfit(Exception):
    pass


@lru_cache
def _reader(wanted: Any) -> Callable[[Any], Any]:
    """What makes a value of a type of JSON, or raises _Unfit: of plain values, tuples, mappings and dataclasses."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if is_dataclass(wanted):
        return partial(_object, wanted, {name: _reader(own) for name, own in get_type_hints(wanted).items()})
    if origin is tuple and inner[-1] is ...:
        return partial(_list, _reader(inner[0]))
    if origin is tuple:
        return partial(_row, [_reader(own) for own in inner])
    if origin in (dict, Mapping):
        return partial(_mapping, _reader(inner[1]))
    kinds = {float: (float, int)}.get(wanted, inner or (wanted,))
    return partial(_plain, frozenset(kinds))


def _object(wanted: Any, readers: Mapping[str, Callable[[Any], Any]], body: Any) -> Any:
    if not isinstance(body, dict) or body.keys() != readers.keys():
        there = sorted(body) if isinstance(body, dict) else f"{body!r:.40}"
        raise _Unfit(f"expected an object of {sorted(readers)}, got {there}")
    found = {}
    for name, read in readers.items():
        try:
            found[name] = read(body[name])
        except _Unfit as error:
            raise _Unfit(f"{name}: {error}") from None
    return wanted(**found)


def _list(read: Callable[[Any], Any], body: Any) -> tuple[Any, ...]:
    if not isinstance(body, list):
        raise _Unfit(f"expected a list, got {body!r:.40}")
    return tuple(map(read, body))


def _row(readers: Sequence[Callable[[Any], Any]], body: Any) -> tuple[Any, ...]:
    if not isinstance(body, list) or len(body) != len(readers):
        raise _Unfit(f"expected a list of {len(readers)}, got {body!r:.40}")
    return tuple(read(own) for read, own in zip(readers, body, strict=True))


def _mapping(read: Callable[[Any], Any], body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise _Unfit(f"expected an object, got {body!r:.40}")
    return {name: read(own) for name, own in body.items()}


def _plain(kinds: frozenset[type], body: Any) -> Any:
    if type(body) not in kinds:
        raise _Unfit(f"expected {' or '.join(sorted(each.__name__ for each in kinds))}, got {body!r:.40}")
    return body


def _consistent(manifest: Manifest) -> None:
    """Raises _Unfit where what is written cannot be: files elsewhere, features that the schema lacks."""
    schema, design = manifest.schema, manifest.design
    if not manifest.shards:
        raise _Unfit("shards: expected at least one")
    for name in manifest.shards:
        if not re.fullmatch(r"shard-[0-9]+[.]parquet", name):
            raise _Unfit(f"shards: expected names as {SHARD.format(0)}, got {name!r:.40}")
    if not (manifest.population >= 1 and 0 < manifest.share <= 1 and min(manifest.rows, manifest.groups) >= 0):
        raise _Unfit(
            "expected a population of at least 1, a share above 0 and at most 1, and no negative rows and groups; got "
            f"{manifest.population}, {manifest.share}, {manifest.rows} and {manifest.groups}"
        )
    if (held := sum(each.rows for each in manifest.shards.values())) != manifest.rows:
        raise _Unfit(f"shards: expected {manifest.rows} rows in all, got {held}")
    if set(manifest.measures) != set(schema.measures):
        raise _Unfit(f"measures: expected those of the schema, got {sorted(manifest.measures)}")
    sizes = {each.name: len(each.values) for each in schema.features}
    named = {*design.cover, *design.given, *(name for own in design.given.values() for name in own)}
    if unknown := (named - set(schema.names)) | ({name for own in design.margins for name in own} - set(sizes)):
        raise _Unfit(f"design: expected names of the schema, got {sorted(unknown)}")
    for name, codes in (atom for trial in design.trials for atom in trial):
        if not all(0 <= code < sizes.get(name, 0) for code in codes):
            raise _Unfit(f"design: a trial asks for codes of {name!r} that it does not have")
