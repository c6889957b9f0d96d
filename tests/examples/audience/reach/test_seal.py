"""A manifest that was changed is refused, whatever was changed in it."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.audience.reach import seal, store
from examples.audience.reach.build import build
from examples.audience.reach.columns import Columns
from examples.audience.reach.schema import AudienceError


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seal")
    pq.write_table(pa.table({"a": np.arange(300) % 4, "b": np.arange(300) % 7}), folder / "p.parquet")
    build([folder / "p.parquet"], Columns(("a", "b")), folder / "s", 60)
    return folder / "s"


def _without_a_shard(body):
    del body["shards"]["shard-001.parquet"]


def _another_name(body):
    body["shards"]["../../x"] = body["shards"].pop("shard-001.parquet")


def _no_number(body):
    body["population"] = "x"


def _a_flag(body):
    body["groups"] = True


def _a_list(body):
    body["shards"] = []


CHANGES = {
    _without_a_shard: "its shards hold 45 rows, not 60",
    _another_name: r"'../../x' is no name of a shard",
    _no_number: "'population' is a whole number; got 'x'",
    _a_flag: "'groups' is a whole number; got True",
    _a_list: "build the sample again",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_what_was_written_is_refused(sample, tmp_path, change):
    shutil.copytree(sample, tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    with pytest.raises(AudienceError, match="not what was written"):
        store.load(tmp_path / "s")
    del body["checksum"]
    path.write_text(json.dumps(seal.sealed(body)))  # whoever changed it wrote its checksum, too
    with pytest.raises(AudienceError, match=CHANGES[change]):
        store.load(tmp_path / "s")


def test_what_was_written_is_read(sample):
    manifest = store.load(sample)
    assert manifest.rows == 60 and len(manifest.identity) == 12
    body = json.loads((sample / "manifest.json").read_text())
    assert seal.opened(body, sample, list(body)) is body
