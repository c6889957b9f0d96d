"""What is written is read, and what cannot have been written is refused by name."""

import json
import shutil

import pytest

from examples.audience.reach import store
from examples.audience.reach.build import build, refresh
from examples.audience.reach.manifest import load, signed
from examples.audience.reach.schema import AudienceError
from tests.examples.audience.reach.population import COLUMNS, files


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifest")
    build(files(folder / "population", days=1, rows=2000), COLUMNS, folder / "s", 50)
    return folder / "s"


@pytest.fixture
def sample(made, tmp_path):
    shutil.copytree(made, tmp_path / "s")
    return tmp_path / "s"


def change(sample, *keys, value, sign=True):
    path = sample / "manifest.json"
    body = json.loads(path.read_text())
    at = body
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    path.write_text(json.dumps(signed(body) if sign else body))


def test_what_is_written_is_read(sample):
    manifest = load(sample)
    assert manifest.share == 50 / 2000 and len(manifest.design.trials) > 20 and manifest.design.margins
    assert manifest.schema.feature("premium").values == (False, True)
    body = json.loads((sample / "manifest.json").read_text())
    (sample / "manifest.json").write_text(json.dumps(body, indent=3, sort_keys=True))
    assert load(sample) == manifest  # the same, written otherwise


CHANGES = [
    (("population",), 5),
    (("groups",), 1),
    (("share",), 1.0),
    (("design", "cover"), []),
    (("design", "margins"), []),
    (("design", "schema", "features", 1, "values"), [0, 9]),
    (("sources",), {}),
]


@pytest.mark.parametrize(("keys", "value"), CHANGES, ids=[keys[-1] for keys, _ in CHANGES])
def test_a_change_is_noticed(keys, value, sample):
    change(sample, *keys, value=value, sign=False)
    with pytest.raises(AudienceError, match=r"manifest\.json is not what was written: .*build the sample again"):
        load(sample)


UNFIT = [
    (("population",), "x", "population: expected int, got 'x'"),
    (("population",), True, "population: expected int, got True"),
    (("population",), 0, "expected a population of at least 1"),
    (("share",), 0, "a share above 0"),
    (("created",), None, "created: expected float or int, got None"),
    (("model",), 3, "model: expected str, got 3"),
    (("sources",), ["a"], "sources: expected an object"),
    (("shards",), {}, "shards: expected at least one"),
    (("shards", "shard-000.parquet"), {"rows": 1}, "shards: expected an object of"),
    (("shards", "../../s/shard-000.parquet"), {"checksum": "", "rows": 1, "weight": 1.0}, "shards: expected names as"),
    (
        ("design", "schema", "features", 0, "values"),
        [0.5],
        "design: schema: features: values: expected NoneType or bool",
    ),
    (("design", "trials"), [[["age", [99]]]], "a trial asks for codes of 'age' that it does not have"),
    (("design", "trials"), [[["age"]]], "trials: expected a list of 2"),
    (("design", "cover"), ["zz"], r"design: expected names of the schema, got \['zz'\]"),
    (("design", "given"), {"age": ["zz"]}, r"expected names of the schema, got \['zz'\]"),
    (("design", "margins"), [["age", "spend"]], r"expected names of the schema, got \['spend'\]"),
    (("rows",), 51, "shards: expected 51 rows in all, got 50"),
    (("measures",), {}, "measures: expected those of the schema"),
    (("measures", "click"), {"low": 0}, "measures: expected an object of"),
    (("more",), 1, "expected an object of"),
]


@pytest.mark.parametrize(
    ("keys", "value", "message"), UNFIT, ids=[f"{keys[-1]} {value!r:.12}" for keys, value, _ in UNFIT]
)
def test_what_cannot_be_is_named(keys, value, message, sample):
    change(sample, *keys, value=value)
    with pytest.raises(AudienceError, match=f"{message}.*build the sample again"):
        load(sample)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "version None, this program reads 3"),
        ('{"version": 2}', "version 2, this program reads 3; build the sample again"),
    ],
    ids=["cut", "deep", "list", "old"],
)
def test_what_is_old_or_no_manifest_is_refused(text, message, sample):
    (sample / "manifest.json").write_text(text)
    for run in (lambda: store.load(sample), lambda: refresh(sample, [])):
        with pytest.raises(AudienceError, match=message):
            run()
    (sample / "manifest.json").unlink()
    with pytest.raises(AudienceError, match="no manifest"):
        store.load(sample)
