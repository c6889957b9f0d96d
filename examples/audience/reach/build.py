"""From Parquet files to a sample, over as many processes as there are: learn, cut into parts, draw, write."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from examples.audience.reach import store
from examples.audience.reach.calibrate import stretched
from examples.audience.reach.columns import Columns, Map, here, seen
from examples.audience.reach.design import Design
from examples.audience.reach.draw import Drawn, NeedMore, draw, drawn_users
from examples.audience.reach.formula import of_trial
from examples.audience.reach.learn import learn
from examples.audience.reach.measures import Spread, joined
from examples.audience.reach.model import Model, compact, fitted
from examples.audience.reach.part import Part, part
from examples.audience.reach.schema import AudienceError
from examples.audience.reach.shard import tried
from examples.audience.reach.store import Manifest


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
    if n < 1 or not files:
        raise AudienceError(f"a sample needs files and at least 1 row; got {len(files)} files and n={n}")
    found = list(each(seen, [(path, columns, seed) for path in files]))
    twice = {one.checksum for one in found}
    if len(twice) < len(found):
        raise AudienceError("two of the files hold the same bytes; a row would count twice")
    design = learn(found, columns)
    sources = {str(one.path): one.checksum for one in found}
    population = sum(one.rows for one in found)
    manifest = Manifest(design, population, 0, seed, time.time(), sources=sources)
    drawn, model, measures = _drawn(sources, columns, design, n, population, seed, each)
    return store.save(drawn, model, replace(manifest, measures=measures), folder, shards)


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
            tables = {
                names: np.sum([each_.tables[names] for each_ in parts], axis=0).astype(float)
                for names in design.tables()
            }
            truth = np.sum([each_.trials for each_ in parts], axis=0)
            model = Model(design, compact(drawn.strata), drawn.counts, tables)
            expected = [model.expected(of_trial(trial)) for trial in design.trials]
            model = stretched(fitted(model, expected, truth), expected, tried(drawn.rows, design), truth)
            return drawn, model, joined(each_.measures for each_ in parts)


def refresh(folder: Path, files: Sequence[Path], *, n: int | None = None, each: Map = here) -> Manifest:
    """Yesterday's sample for today's files: the same schema, cover and keys, so most rows that stayed are drawn again.

    Values that yesterday's schema does not have belong to no value of their feature; build anew to learn them.
    """
    old = store.load(folder)
    schema = old.design.schema
    names = tuple(each_.name for each_ in schema.features), tuple(each_.name for each_ in schema.numbers)
    columns = Columns(*names, schema.measures, schema.user)
    found = list(each(_size, [(path,) for path in files]))
    sources = {str(path): name for path, (name, _) in zip(files, found, strict=True)}
    population = sum(rows for _, rows in found)
    if population == 0:
        raise AudienceError("the files have no rows")
    wanted = n if n is not None else max(1, round(old.rows * population / old.population))
    drawn, model, measures = _drawn(sources, columns, old.design, wanted, population, old.seed, each)
    made = replace(old, population=population, created=time.time(), sources=sources, measures=measures)
    return store.save(drawn, model, made, folder, len(old.shards))


def _size(path: Path) -> tuple[str, int]:
    import pyarrow.parquet as pq

    from examples.audience.reach import keys

    try:
        return keys.checksum(path), pq.ParquetFile(path).metadata.num_rows
    except OSError as error:
        raise AudienceError(f"{path} is no Parquet file: {error}") from None
