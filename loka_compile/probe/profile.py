"""The profile: what a probe learned of every GEMM of a model, as plain data and as a file.

A profile file is safetensors (means and sampled rows) with everything else as JSON in its metadata, under the one key
`loka-profile`: {"version", "checksum", "content"}. It is never pickle. Equal profiles are equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from loka_compile.probe.segments import Source
from loka_compile.probe.site_profile import SiteProfile, site_from_json, site_to_json
from loka_compile.spec.site import Site

FORMAT = "loka-profile"
VERSION = 3
REDO = "make the profile anew with loka.probe(model) and probe.save(path)"


class ProfileError(ValueError):
    """A profile file that cannot be used: what was expected, what came, what to do."""


@dataclass(frozen=True, eq=False)
class Profile:
    """Sites by key (a second site of the same key is `key@source`). created_with: library versions. seed: the
    probe's, from which every sample and draw follows. source: whom the rows stand for, None if they had no labels."""

    sites: Mapping[str, SiteProfile]
    created_with: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    version: int = VERSION
    source: Source | None = None

    def find(self, site: Site) -> SiteProfile | None:
        """The profile of a graph's site; None if there is none, or if the site of that name is another GEMM."""
        for key in (f"{site.key}@{site.source}", site.key):
            known = self.sites.get(key)
            if known is not None and known.site.same_gemm(site):
                return known
        return None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the whole content; part of cache keys."""
        return _checksum(*_content(self))

    def to_bytes(self) -> bytes:
        content, tensors = _content(self)
        header = {"version": self.version, "checksum": _checksum(content, tensors), "content": content}
        return safetensors.torch.save(tensors, {FORMAT: json.dumps(header)})

    def save(self, path: str | Path) -> None:
        """Write the file whole or not at all; missing folders are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(self.to_bytes())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def summary(self) -> str:
        """One line a site: shape, calls, tails, and MERE by recipe; below it the worst segment of each recipe."""
        lines = [repr(self), *self._source_lines()]
        for key, known in self.sites.items():
            errors = "  ".join(f"{name} {error.mere:.3g}" for name in known.scores if (error := known.error(name)))
            faults = known.lhs.non_finite + known.rhs.non_finite
            lines.append(
                f"  {key}  {known.site.shape}  calls {known.calls}  amax {known.lhs.amax:.3g}, {known.rhs.amax:.3g}  "
                f"drawn from {known.lhs.model or '-'}, {known.rhs.model or '-'}  "
                f"zero rows {known.lhs.zero_rows}{f'  NOT FINITE {faults}' if faults else ''}  mere: {errors or '-'}"
            )
            worst = {recipe: known.worst_segment(recipe) for recipe in known.scores} if known.segments else {}
            if worst:
                parts = (f"{recipe} {mere:.3g} ({name}, {rows} rows)" for recipe, (name, mere, rows) in worst.items())
                lines.append(f"    worst segments: {'  '.join(parts)}")
        return "\n".join(lines)

    def _source_lines(self) -> list[str]:
        if self.source is None:
            return []
        shares = ("; ".join(f"{v} {x:.1%}" for v, x in by.items()) for by in self.source.shares.values())
        seen = (f"{name}: {text}" for name, text in zip(self.source.shares, shares, strict=True))
        return [f"  {self.source.rows:,} rows seen  {'  '.join(seen)}"]

    def __repr__(self) -> str:
        calls = max((known.calls for known in self.sites.values()), default=0)
        return f"Profile(sites={len(self.sites)}, calls={calls}, fingerprint={self.fingerprint[:12]!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Profile) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def load_profile(path: str | Path) -> Profile:
    """Read a profile file. Raises ProfileError on anything but a whole profile of a version known here."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ProfileError(f"cannot read profile {path}: {error.strerror or error}; {REDO}") from error
    return parse_profile(data, str(path))


def parse_profile(data: bytes, name: str = "profile") -> Profile:
    header = _header(data, name)
    version = header.get("version")
    if type(version) is not int or version < 1:
        raise ProfileError(f"{name} has no profile version (got {version!r}); {REDO}")
    if version < VERSION:
        raise ProfileError(f"{name} has profile version {version}, this loka reads {VERSION}; {REDO}")
    if version > VERSION:
        raise ProfileError(f"{name} has profile version {version}, this loka reads {VERSION}; upgrade loka")
    try:
        tensors = safetensors.torch.load(data)
        content = header["content"]
        intact = _checksum(content, tensors) == header["checksum"]
    except Exception as error:  # the library's own, and whatever a damaged header makes it raise
        raise ProfileError(f"{name} is damaged or truncated ({type(error).__name__}: {error}); {REDO}") from error
    if not intact:
        raise ProfileError(f"{name} is damaged: its content does not match its checksum; {REDO}")
    try:
        return _profile(json.loads(content), tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ProfileError(f"{name} is malformed ({type(error).__name__}: {error}); {REDO}") from error


def _header(data: bytes, name: str) -> dict[str, Any]:
    """Our metadata in the safetensors header: 8 bytes of length, then JSON."""
    if not data:
        raise ProfileError(f"{name} is empty, expected a loka profile; {REDO}")
    if data[8:9] != b"{" and (data[:1] == b"\x80" or data[:4] == b"PK\x03\x04"):  # not a header's length by chance
        raise ProfileError(f"{name} looks like a pickle or a torch.save file, which loka never reads; {REDO}")
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or data[8:9] != b"{":
        raise ProfileError(f"{name} is no safetensors file, expected a loka profile; {REDO}")
    if length > len(data) - 8:
        raise ProfileError(f"{name} is truncated: its header has {length} bytes, {len(data) - 8} are there; {REDO}")
    try:
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        header = json.loads(metadata[FORMAT]) if FORMAT in metadata else None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ProfileError(f"{name} has a damaged header ({type(error).__name__}: {error}); {REDO}") from error
    if not isinstance(header, dict):
        raise ProfileError(f"{name} was not written by loka (no {FORMAT!r} in its metadata); {REDO}")
    return header


# ---------------------------------------------------------------- content: JSON text and named tensors


def _content(profile: Profile) -> tuple[str, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    sites = {}
    for index, (key, known) in enumerate(profile.sites.items()):
        sites[key] = site_to_json(known, f"{index:05d}", tensors)
    source = asdict(profile.source) if profile.source is not None else None
    body = {"created_with": dict(profile.created_with), "seed": profile.seed, "source": source, "sites": sites}
    return json.dumps(body, allow_nan=False), tensors


def _checksum(content: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def _profile(body: dict[str, Any], tensors: Mapping[str, Tensor]) -> Profile:
    sites = {key: site_from_json(known, tensors) for key, known in body["sites"].items()}
    source = Source(**body["source"]) if body["source"] is not None else None
    return Profile(sites, dict(body["created_with"]), int(body["seed"]), source=source)
