"""From files to a sample: unbiased, reproducible, kept through a refresh, and errors that name the file."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.audience.reach import store
from examples.audience.reach.build import build, refresh
from examples.audience.reach.columns import MEASURE, USER, WEIGHT, Columns
from examples.audience.reach.draw import allocated
from examples.audience.reach.schema import AudienceError
from tests.examples.audience.reach.population import COLUMNS, files, table


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return files(tmp_path_factory.mktemp("population"))


def rows_of(folder):
    manifest = store.load(folder)
    return pa.concat_tables([store.read_shard(folder, manifest, name) for name in manifest.shards])


def test_the_weights_sum_to_the_population_in_every_stratum(paths, tmp_path):
    made = build(paths, COLUMNS, tmp_path / "s", 900)
    rows = rows_of(tmp_path / "s")
    assert made.rows == len(rows) == 900 and made.population == 24_000
    assert rows[WEIGHT].to_numpy().sum() == pytest.approx(24_000)
    assert "age" in made.cover
    values = made.schema.feature("age").values
    held = np.bincount(rows["age"].to_numpy(), rows[WEIGHT].to_numpy(), len(values))
    truth = np.bincount(np.concatenate([pq.read_table(p)["age"].to_numpy() for p in paths]), minlength=len(values))
    assert np.abs(held - truth).max() <= 2 * rows[WEIGHT].to_numpy().max()  # exact but for rounding


def test_every_row_has_the_same_chance_whatever_its_stratum(tmp_path):
    path = tmp_path / "one.parquet"
    pq.write_table(table(400).append_column("id", pa.array(np.arange(400))), path)
    columns = Columns(COLUMNS.features, COLUMNS.numbers, ("id",))
    drawn = np.zeros(400)
    for seed in range(150):
        build([path], columns, tmp_path / "s", 40, seed=seed, shards=2)
        rows = rows_of(tmp_path / "s")
        drawn[rows[MEASURE + "id"].to_numpy().astype(int)] += rows[WEIGHT].to_numpy()
    assert drawn.mean() == pytest.approx(150, rel=0.01)
    assert np.abs(drawn - 150).max() < 6 * np.sqrt(150 * 10)  # a weight of about 10 at a chance of a tenth


def test_the_sample_does_not_depend_on_who_reads_the_files(paths, tmp_path):
    build(paths, COLUMNS, tmp_path / "a", 500)
    build(paths[::-1], COLUMNS, tmp_path / "b", 500, each=lambda f, calls: [f(*c) for c in calls[::-1]][::-1])
    one, other = rows_of(tmp_path / "a").sort_by("spend"), rows_of(tmp_path / "b").sort_by("spend")
    assert one["spend"].equals(other["spend"]) and one[WEIGHT].equals(other[WEIGHT])
    build(paths, COLUMNS, tmp_path / "c", 500, seed=1)
    assert not rows_of(tmp_path / "c").sort_by("spend")["spend"].equals(one["spend"])


def test_a_refresh_keeps_most_rows_of_days_that_stay(paths, tmp_path):
    build(paths, COLUMNS, tmp_path / "s", 900)
    before = set(rows_of(tmp_path / "s")["spend"].to_pylist())
    pq.write_table(table(8000, seed=99), tmp_path / "new.parquet")
    made = refresh(tmp_path / "s", [*paths[1:], tmp_path / "new.parquet"])
    rows = rows_of(tmp_path / "s")
    after = set(rows["spend"].to_pylist())
    gone = set(pq.read_table(paths[0])["spend"].to_pylist())
    stayed = before - gone
    assert len(after & stayed) > 0.7 * len(stayed) and not after & gone
    assert made.population == 24_000 and rows[WEIGHT].to_numpy().sum() == pytest.approx(24_000)


def test_users_are_drawn_with_all_their_rows(tmp_path):
    rng = np.random.default_rng(0)
    user = rng.integers(0, 3000, 20_000)
    whole = table(20_000).append_column("user", pa.array([f"u{u}" for u in user]))
    for i in range(2):
        pq.write_table(whole.slice(10_000 * i, 10_000), tmp_path / f"{i}.parquet")
    columns = Columns(COLUMNS.features, user="user")
    made = build([tmp_path / "0.parquet", tmp_path / "1.parquet"], columns, tmp_path / "s", 4000)
    rows = rows_of(tmp_path / "s")
    counts = np.bincount(user)
    held = np.unique(rows[USER].to_numpy(), return_counts=True)[1]
    assert held.mean() == pytest.approx(counts[counts > 0].mean(), rel=0.1)
    assert len(held) * rows[WEIGHT][0].as_py() == pytest.approx(3000, rel=0.15)
    seen = set()
    for name in made.shards:  # no user is in two shards
        own = set(store.read_shard(tmp_path / "s", made, name)[USER].to_pylist())
        assert not own & seen
        seen |= own


def test_allocation_takes_stable_strata_in_proportion_and_the_others_together():
    sizes = np.array([1, 500, 2, 1, 495, 1])
    drawn = np.zeros(6)
    for seed in range(300):
        wanted, weights, groups, group_sizes = allocated(sizes, 100, np.random.default_rng(seed))
        assert wanted.sum() == 100 == len(weights) and wanted[1] in (49, 50, 51) and wanted[4] in (49, 50)
        assert weights.sum() == pytest.approx(1000) and group_sizes.sum() == pytest.approx(1000)
        assert np.bincount(groups).min() >= 1
        drawn += np.bincount(np.repeat(np.arange(6), wanted), weights, 6)
    assert drawn / 300 == pytest.approx(sizes, rel=0.35)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["age"]), r"no columns \['age'\]"),
        (lambda t: t.set_column(1, "age", pa.array(np.random.rand(len(t)))), "feature 'age' holds double"),
        (lambda t: t.slice(0, 0), "has no rows"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(change, message, tmp_path):
    pq.write_table(change(table(100)), tmp_path / "bad.parquet")
    with pytest.raises(AudienceError, match=message):
        build([tmp_path / "bad.parquet"], COLUMNS, tmp_path / "s", 10)
    assert not (tmp_path / "s").exists()


def test_what_is_no_parquet_file_is_an_error(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(AudienceError, match="no Parquet file"):
        build([tmp_path / "x.parquet"], COLUMNS, tmp_path / "s", 10)


def test_the_same_file_twice_is_an_error(paths, tmp_path):
    with pytest.raises(AudienceError, match="count twice"):
        build([paths[0], paths[0]], COLUMNS, tmp_path / "s", 10)


ON_A_FULL_DISK = """
set -e
mount -t tmpfs -o size=1m none {disk}
{python} -m examples.audience build {first} --features {features} --rows 50 --out {disk}/s > {disk}/log
dd if=/dev/zero of={disk}/fill bs=4k 2> {disk}/log || true
if {python} -m examples.audience build {all} --features {features} --rows 60 --out {disk}/s; then exit 99; fi
rm {disk}/fill
{python} -m examples.audience ask --sample {disk}/s everybody
ls -A {disk}
"""


def test_a_disk_that_is_full_leaves_the_old_sample(paths, tmp_path):
    """A disk of 1 MB, in a namespace of its own, that is filled to the end."""
    disk = tmp_path / "disk"
    disk.mkdir()
    apart = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if subprocess.run([*apart, f"mount -t tmpfs none {disk}"], capture_output=True).returncode:
        pytest.skip("this machine mounts no disk")
    named = {"python": sys.executable, "disk": disk, "first": paths[0], "features": " ".join(COLUMNS.features)}
    script = ON_A_FULL_DISK.format(**named, all=" ".join(map(str, paths)))
    done = subprocess.run([*apart, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [line] = done.stderr.splitlines()
    assert f"{disk}/s cannot be written" in line and "No space left on device" in line
    rows = len(pq.read_table(paths[0]))
    assert done.stdout.startswith(f"{rows:,} exactly, 50 rows of the sample")
    assert done.stdout.split()[-2:] == ["log", "s"]  # nothing half-written lies about
