"""From Parquet files to a sample, over as many processes as there are: learn, cut into parts, draw, write."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from examples.audience.reach import store
from examples.audience.reach.calibrate import stretched
from examples.audience.reach.columns import Columns, Map, Seen, here, seen
from examples.audience.reach.design import Design
from examples.audience.reach.draw import Drawn, NeedMore, draw, drawn_users
from examples.audience.reach.formula import of_trial
from examples.audience.reach.kinds import agreed, kind_of
from examples.audience.reach.learn import extended, learn
from examples.audience.reach.manifest import Manifest
from examples.audience.reach.measures import Spread, joined
from examples.audience.reach.model import Model, fitted
from examples.audience.reach.part import Part, part
from examples.audience.reach.schema import AudienceError
from examples.audience.reach.shard import tried
from examples.audience.reach.strata import compact


def build(
    files: Sequence[Path],
    columns: Columns,
    folder: Path,
    n: int,
    *,
    shards: int = 4,
    seed: int = 0,
    each: Map = here,
) -> Manifest:
    """A sample of `n` rows of the files (with a user column: of n / N of the users), written to `folder`.

    Files larger than memory are read a row group at a time, twice. The same files, n and seed give the same sample, on
    any number of processes. Raises AudienceError for files and columns that cannot be used.
    """
    if n < 1:
        raise AudienceError(f"a sample has at least 1 row, not {n}")
    if not 0 <= seed < 2**63:
        raise AudienceError(f"a seed is a whole number from 0 to 2^63 - 1, not {seed}")
    with store.naming(folder):
        store.usable(folder, shards)
    found = _found(files, columns, seed, each)
    agreed((one.path, one.kinds) for one in found)
    sources, population = {str(one.path): one.checksum for one in found}, sum(one.rows for one in found)
    manifest = Manifest(
        learn(found, columns), population, 0, seed, time.time(), min(1.0, n / population), sources=sources
    )
    drawn, model, measures = _drawn(sources, columns, manifest.design, n, population, seed, each)
    return store.save(drawn, model, replace(manifest, measures=measures), folder, shards)


def refresh(folder: Path, files: Sequence[Path], *, n: int | None = None, each: Map = here) -> Manifest:
    """Yesterday's sample for today's files: the same cover, buckets and keys, so most rows that stayed are drawn again.

    n: rows, by default the share of all that was asked for last. Values that yesterday's files did not have are learned
    (`extended`). Raises AudienceError as `build` does; yesterday's sample stays then.
    """
    if n is not None and n < 1:
        raise AudienceError(f"a sample has at least 1 row, not {n}")
    old = store.load(folder)
    schema = old.schema
    features, numbers = ([each_.name for each_ in own] for own in (schema.features, schema.numbers))
    columns = Columns(tuple(features), tuple(numbers), schema.measures, schema.user)
    found = _found(files, columns, old.seed, each)
    agreed(((one.path, one.kinds) for one in found), {each_.name: kind_of(each_) for each_ in schema.features})
    sources, population = {str(one.path): one.checksum for one in found}, sum(one.rows for one in found)
    share = old.share if n is None else min(1.0, n / population)
    design, wanted = extended(old.design, found), n or max(1, round(old.share * population))
    drawn, model, measures = _drawn(sources, columns, design, wanted, population, old.seed, each)
    made = replace(old, design=design, population=population, created=time.time(), share=share, sources=sources)
    return store.save(drawn, model, replace(made, measures=measures), folder, len(old.shards))


def _found(files: Sequence[Path], columns: Columns, seed: int, each: Map) -> list[Seen]:
    """The first pass over every file."""
    if not files:
        raise AudienceError("a sample is of files; name at least one")
    found: list[Seen] = list(each(seen, [(path, columns, seed) for path in files]))
    first: dict[str, Path] = {}
    for one in found:
        if one.checksum in first:
            raise AudienceError(
                f"two of the files, {first[one.checksum]} and {one.path}, hold the same bytes; a row would count "
                "twice: name one of them"
            )
        first[one.checksum] = one.path
    return found


def _drawn(
    sources: dict[str, str],
    columns: Columns,
    design: Design,
    n: int,
    population: int,
    seed: int,
    each: Map,
) -> tuple[Drawn, Model, dict[str, Spread]]:
    """The draw, and the model and the measures of the whole population; parts that turn out too small for the draw are
    made again, larger."""
    rate = min(1.0, n / population)
    while True:
        calls = [(Path(path), name, columns, design, rate, seed) for path, name in sources.items()]
        parts: list[Part] = list(each(part, calls))
        try:
            drawn = drawn_users(parts, n / population) if columns.user else draw(parts, n, seed)
        except NeedMore as error:
            if rate >= 1:
                raise
            rate = min(1.0, max(error.rate, 2 * rate))
        else:
            if drawn.population != population:
                raise AudienceError(
                    f"the files had {population} rows when they were looked through and {drawn.population} when they "
                    "were drawn from; they changed while they were read, begin again"
                )
            tables = {
                names: np.sum([each_.tables[names] for each_ in parts], axis=0).astype(float)
                for names in design.tables()
            }
            truth = np.sum([each_.trials for each_ in parts], axis=0)
            model = Model(design, compact(drawn.strata), drawn.counts, tables)
            expected = [model.expected(of_trial(trial)) for trial in design.trials]
            model = stretched(fitted(model, expected, truth), expected, tried(drawn.rows, design), truth)
            return drawn, model, joined(each_.measures for each_ in parts)
