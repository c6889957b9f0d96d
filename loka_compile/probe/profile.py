"""The profile: what a probe learned of every GEMM of a model, as plain data and as a file.

A profile file is safetensors (means and sampled rows) with everything else as JSON in its metadata, under the one key
`loka-profile`: {"version", "checksum", "content"}. It is never pickle. Equal profiles are equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from loka_compile.probe.models import MODELS, Model
from loka_compile.probe.pairs import Estimated, Interval
from loka_compile.probe.score import ErrorScore
from loka_compile.probe.segments import SegmentScore, Source
from loka_compile.probe.statistics import OperandStats
from loka_compile.spec.site import Site

FORMAT = "loka-profile"
VERSION = 3
REDO = "make the profile anew with loka.probe(model) and probe.save(path)"


class ProfileError(ValueError):
    """A profile file that cannot be used: what was expected, what came, what to do."""


@dataclass(frozen=True)
class SiteProfile:
    """One GEMM over all measured calls.

    lhs, rhs: its operands. scores: by recipe, the worst over the calls on the real operands; drawn: with intervals, on
    operands drawn from the learned distributions. observed: batch, M, N, K of the largest call. segments: errors by
    segment, `feature=value`.
    """

    site: Site
    calls: int
    lhs: OperandStats
    rhs: OperandStats
    scores: Mapping[str, ErrorScore] = field(default_factory=dict)
    drawn: Mapping[str, Estimated] = field(default_factory=dict)
    observed: tuple[int, int, int, int] = (1, 0, 0, 0)
    segments: Mapping[str, SegmentScore] = field(default_factory=dict)

    @property
    def observed_batch(self) -> int:
        return self.observed[0]

    @property
    def observed_M(self) -> int:
        return self.observed[1]

    def error(self, recipe: str) -> ErrorScore | None:
        """The worse of the errors on real and on drawn operands, of these the worse end of the intervals; None if the
        recipe was not scored."""
        known = [self.scores[recipe]] if recipe in self.scores else []
        known += [self.drawn[recipe].cautious] if recipe in self.drawn else []
        return known[0].worst(known[-1]) if known else None

    def worst_segment(self, recipe: str) -> tuple[str, float, int]:
        """Name, MERE and scored rows of the segment that a recipe harms most."""
        scored = [(n, s.scores[recipe].mere, s.rows) for n, s in self.segments.items() if recipe in s.scores]
        return max(scored, key=lambda found: found[1], default=("", 0.0, 0))


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
        """What is known of a graph's site; None also where the profile's site of that name is another GEMM."""
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
            errors = "  ".join(f"{name} {known.error(name).mere:.3g}" for name in known.scores)
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
        sites[key] = {
            "site": known.site.to_json(),
            "calls": known.calls,
            "observed": list(known.observed),
            "lhs": _stats_to_json(known.lhs, f"{index:05d}.lhs", tensors),
            "rhs": _stats_to_json(known.rhs, f"{index:05d}.rhs", tensors),
            "scores": {name: _plain(asdict(score)) for name, score in known.scores.items()},
            "drawn": {name: _estimated_to_json(each) for name, each in known.drawn.items()},
            "segments": {name: _segment_to_json(each) for name, each in known.segments.items()},
        }
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
    sites = {
        key: SiteProfile(
            site=Site.from_json(known["site"]),
            calls=int(known["calls"]),
            lhs=_stats_from_json(known["lhs"], tensors),
            rhs=_stats_from_json(known["rhs"], tensors),
            scores={name: ErrorScore(**_numbers(score)) for name, score in known["scores"].items()},
            drawn={name: _estimated_from_json(each) for name, each in known["drawn"].items()},
            segments={name: _segment_from_json(each) for name, each in known["segments"].items()},
            observed=tuple(int(size) for size in known["observed"]),  # type: ignore[arg-type]
        )
        for key, known in body["sites"].items()
    }
    source = Source(**body["source"]) if body["source"] is not None else None
    return Profile(sites, dict(body["created_with"]), int(body["seed"]), source=source)


def _segment_to_json(segment: SegmentScore) -> dict[str, Any]:
    return {"rows": segment.rows, "scores": {name: _plain(asdict(score)) for name, score in segment.scores.items()}}


def _segment_from_json(body: dict[str, Any]) -> SegmentScore:
    scores = {name: ErrorScore(**_numbers(score)) for name, score in body["scores"].items()}
    return SegmentScore(int(body["rows"]), scores)


def _estimated_to_json(estimated: Estimated) -> dict[str, Any]:
    intervals = {name: _plain(asdict(getattr(estimated, name))) for name in _INTERVALS}
    return {"pairs": estimated.pairs, **intervals}


def _estimated_from_json(body: dict[str, Any]) -> Estimated:
    return Estimated(int(body["pairs"]), *(Interval(**_numbers(body[name])) for name in _INTERVALS))


_INTERVALS = ("mere", "sqnr_db", "median_rel")


def _stats_to_json(stats: OperandStats, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    body = {f.name: getattr(stats, f.name) for f in fields(stats) if f.name != "distribution"}
    if stats.distribution is not None:
        values = {f.name: getattr(stats.distribution, f.name) for f in fields(stats.distribution)}
        arrays = {key: value.cpu().contiguous() for key, value in values.items() if isinstance(value, Tensor)}
        tensors.update({f"{name}.{key}": value for key, value in arrays.items()})
        numbers = _plain({key: value for key, value in values.items() if key not in arrays})
        body["distribution"] = {"model": stats.model, "tensors": name, "numbers": numbers}
    return _plain({**body, "quantiles": [_plain({"": q})[""] for q in stats.quantiles]})


def _stats_from_json(body: dict[str, Any], tensors: Mapping[str, Tensor]) -> OperandStats:
    body = dict(body)
    stored, fallback = body.pop("distribution", None), str(body.pop("fallback"))
    quantiles = tuple(float(value) for value in body.pop("quantiles"))
    distribution = _model_from_json(stored, tensors) if stored is not None else None
    return OperandStats(**_numbers(body), quantiles=quantiles, distribution=distribution, fallback=fallback)


def _model_from_json(body: dict[str, Any], tensors: Mapping[str, Tensor]) -> Model:
    kind, numbers = MODELS[body["model"]], _numbers(body["numbers"])
    arrays = {f.name: tensors[f"{body['tensors']}.{f.name}"] for f in fields(kind) if f.name not in numbers}
    return kind(**arrays, **numbers)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has neither infinity nor NaN: write them as strings."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {k: float(v) if isinstance(v, str) else v for k, v in values.items()}
