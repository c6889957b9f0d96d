"""What a manifest is trusted for: its checksum of itself, and that its fields can be what they say."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.audience.reach.schema import AudienceError

if TYPE_CHECKING:
    from examples.audience.reach.store import Manifest

NAME = re.compile(r"shard-\d{3,}\.parquet")
"""Of a shard: a file of the sample's folder, and no path out of it."""


def sealed(body: dict[str, Any]) -> dict[str, Any]:
    """The manifest's body with its checksum."""
    return body | {"checksum": _checksum(body)}


def opened(body: dict[str, Any], path: Path, names: Sequence[str]) -> dict[str, Any]:
    """The body, with entries of these names. Raises AudienceError where it is not what was written."""
    if missing := [name for name in names if name not in body]:
        raise AudienceError(f"{path} lacks {', '.join(map(repr, missing))}; build the sample again")
    if body.get("checksum") != _checksum(body):
        raise AudienceError(f"{path} is not what was written: its checksum is another; build the sample again")
    return body


def verified(manifest: Manifest, path: Path) -> Manifest:
    """The manifest. Raises AudienceError for one whose fields are of another kind or do not fit together."""
    for name in ("population", "rows", "seed", "groups"):
        value = getattr(manifest, name)
        if type(value) is not int or value < 0:
            raise AudienceError(f"{path}: {name!r} is a whole number; got {value!r:.40}; build the sample again")
    for name, shard in manifest.shards.items():
        if not NAME.fullmatch(name):
            raise AudienceError(f"{path}: {name!r:.80} is no name of a shard; build the sample again")
        if type(shard.rows) is not int or not isinstance(shard.checksum, str) or type(shard.weight) not in (int, float):
            raise AudienceError(f"{path}: the entry of {name!r} is malformed; build the sample again")
    held = sum(shard.rows for shard in manifest.shards.values())
    if held != manifest.rows:
        raise AudienceError(f"{path}: its shards hold {held} rows, not {manifest.rows}; build the sample again")
    return manifest


def _checksum(body: dict[str, Any]) -> str:
    rest = {name: value for name, value in body.items() if name != "checksum"}
    return digest(rest)


def digest(data: Any) -> str:
    """Of anything that JSON holds, 16 bytes."""
    plain = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(plain.encode(), digest_size=16).hexdigest()
