"""Data sets that one must hold, on small files of their schemas."""

from __future__ import annotations

import csv

import pytest
import torch

from examples.lattice import held
from examples.lattice.data import DataError
from examples.lattice.delays import NEVER
from examples.movielens import UNKNOWN
from tests.examples.lattice.test_data import check


def write(path, names, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])


def kuai(folder, columns=("timestamp", *held.KUAI)):
    train = [(5, "u1", "v1", 1, 0, 1, ""), (6, "u2", "v2", 0, 0, 0, "v1"), (7, "u1", "v2", 1, 1, 0, "v1^v3")]
    test = [(9, "u3", "v1", 0, 0, 1, "v3^v9")]
    for name, rows in (("train", train), ("test", test)):
        write(folder / f"{name}.csv", columns, [row[-len(columns) :] for row in rows])
    return folder


def test_kuaivideo(tmp_path):
    found = held.kuaivideo(kuai(tmp_path))
    check(found)
    assert found.tasks == ("click", "follow", "like") and found.train.labels[0].tolist() == [1, 0, 1]
    assert found.test.ids.tolist() == [[UNKNOWN, 1]]  # a newcomer sees a known film
    assert found.train.bag.tolist() == [[0, 0], [1, 0], [1, 2]] and found.test.bag.tolist() == [[2, UNKNOWN]]
    assert found.everything().times.tolist() == [5, 6, 7, 9]
    without = held.kuaivideo(kuai(tmp_path, held.KUAI))
    assert without.train.times.tolist() == [0, 0, 0]


def click(second, converted, number, category):
    return "\t".join([str(second), converted, str(number), "", *"123456", category, *"abcdefgh"])


def test_criteo(tmp_path):
    path = tmp_path / "data.txt"
    lines = [click(30, "", 3, "x"), click(10, "15", -1, "x"), click(20, "86420", 7, "y"), click(90, "90", 0, "new")]
    path.write_text("\n".join(lines) + "\n")
    found = held.criteo(path, test_share=0.25)
    check(found.data)
    assert found.delay.tolist() == [5, 86_400, NEVER, 0]
    everything = found.data.everything()
    assert everything.times.tolist() == [10, 20, 30, 90] and everything.labels.flatten().tolist() == [1, 0, 0, 1]
    assert found.data.test.ids[0, 0] == UNKNOWN and bool((found.data.test.ids[0, 1:] == 1).all())
    assert everything.users.tolist() == [1, 2, 1, 3]


def test_criteos_integers_are_standardised_by_the_first_rows_that_one_says(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("\n".join(click(i, "", number, "x") for i, number in enumerate((0, 1, 0, 1, 0, 1, 5, 6, 7, 9))))
    numbers = torch.log1p(torch.tensor([0.0, 1, 0, 1, 0, 1, 5, 6, 7, 9]))
    for share, rows in ((None, 8), (0.4, 4)):
        found = held.criteo(path, scaled_share=share).data.everything().dense[:, 0]
        scaled = (numbers - numbers[:rows].mean()) / numbers[:rows].std()
        torch.testing.assert_close(found, scaled.clamp(-10, 10))


def test_criteos_training_rows_know_nothing_of_what_comes_after_the_split(tmp_path):
    """Ten clicks, the last two for testing; conversions just before, at and after the first test row's second, 800."""
    path = tmp_path / "data.txt"
    converted = ["799", "800", "801", "", "799", "5000", "", "750", "6000", ""]
    path.write_text("\n".join(click(100 * i, second, 0, "x") for i, second in enumerate(converted)))
    found = held.criteo(path)
    assert int(found.data.test.times[0]) == 800
    assert found.data.train.labels.flatten().tolist() == [1, 0, 0, 0, 1, 0, 0, 1]
    assert found.data.test.labels.flatten().tolist() == [1, 0]  # of the whole file
    assert (found.delay < NEVER).tolist() == [bool(second) for second in converted]
    everything = held.criteo(path, test_share=0.0)  # no split: nothing is hidden
    assert everything.data.train.labels.flatten().tolist() == [float(bool(second)) for second in converted]


def test_kuaivideos_parts_are_in_the_order_of_time(tmp_path):
    columns = ("timestamp", *held.KUAI)
    rows = [(30, "u1", "v1", 1, 0, 0, ""), (10, "u2", "v2", 0, 0, 0, ""), (20, "u3", "v3", 1, 1, 0, "")]
    for name in ("train", "test"):
        write(tmp_path / f"{name}.csv", columns, rows)
    found = held.kuaivideo(tmp_path)
    for part in (found.train, found.test):
        assert part.times.tolist() == [10, 20, 30] and part.labels[:, 0].tolist() == [0, 1, 1]
        assert part.ids.tolist() == [[1, 1], [2, 2], [3, 3]]  # as numbered along the sorted training rows
    write(tmp_path / "train.csv", held.KUAI, [row[1:] for row in rows])  # no times: as the file has them
    assert held.kuaivideo(tmp_path).train.labels[:, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize("name", ["train.csv", "test.csv"])
def test_an_empty_part_of_kuaivideo_is_named(tmp_path, name):
    write(kuai(tmp_path) / name, held.KUAI, [])
    with pytest.raises(DataError, match=f"{name} has no rows: expected one impression or more"):
        held.kuaivideo(tmp_path)


def test_an_empty_sample_of_taobao_is_named(tmp_path):
    write(ads(tmp_path) / "raw_sample.csv", held.SAMPLE, [])
    with pytest.raises(DataError, match=r"raw_sample\.csv has no rows"):
        held.taobao(tmp_path)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "data.txt has no rows: expected one impression or more"),
        (click("x", "8", 0, "x"), r"line 1: expected the click's second, .* got \['x', '8', "),
        (click(9, "soon", 0, "x"), "line 1: expected .* the conversion's or nothing, .* 'soon', "),
        (click(9, "nan", 0, "x"), "line 1: expected .* 'nan', "),
        (click(9, "", "nan", "x"), "line 1: expected .* 8 integers or nothing, got .* 'nan', "),
        ("1\t2\t3\n", "line 1: expected 19 columns between tabs, got 3"),
        (click(9, "8", 0, "x"), "earlier than its click"),
    ],
)
def test_criteo_refuses(tmp_path, text, error):
    path = tmp_path / "data.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=error):
        held.criteo(path)


def ads(folder):
    sample = [("1", 100 - i, "a" if i % 2 else "b", f"p{i % 2}", 1 - i % 2, i % 2) for i in range(8)]
    write(folder / "raw_sample.csv", held.SAMPLE, [*sample, ("77", 200, "zzz", "p1", 0, 1)])
    write(folder / "ad_feature.csv", held.AD, [("a", 1, 2, 3, 4, 9.5), ("b", 1, 2, 3, 5, 100.0)])
    profile = (*held.PROFILE[:-1], "new_user_class_level ")  # as the file has it
    write(folder / "user_profile.csv", profile, [("1", 0, 5, 2, 5, "", 3, 0, 3)])
    return folder


def test_taobao(tmp_path):
    found = held.taobao(ads(tmp_path))
    check(found)
    assert found.domains == ("p0", "p1") and len(found.train) == 8 and len(found.test) == 1
    everything = found.everything()
    assert everything.times.tolist() == [*range(93, 101), 200]
    assert torch.equal(everything.labels.flatten(), everything.domain.float())
    assert found.test.ids[0, :2].tolist() == [UNKNOWN, UNKNOWN]  # neither user nor ad has a line in the other files
    known = [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13]  # but for a consumption level, which a known user lacks as well
    assert found.test.ids[0, known].tolist() == [UNKNOWN] * 13 and found.test.ids[0, 6] == 1


@pytest.mark.parametrize(
    ("load", "make", "name", "error"),
    [
        (held.taobao, ads, "ad_feature.csv", "ad_feature.csv is missing; it is part of the Tianchi data set 56"),
        (held.kuaivideo, kuai, "test.csv", "test.csv is missing; it is part of KuaiVideo_x1"),
        (held.criteo, lambda folder: folder, "data.txt", "is missing: Criteo's conversion log"),
    ],
)
def test_a_missing_file_is_named(tmp_path, load, make, name, error):
    make(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(DataError, match=error):
        load(tmp_path)


def test_columns_that_are_missing_or_broken_are_named(tmp_path):
    kuai(tmp_path)
    write(tmp_path / "test.csv", ("user_id", "is_click"), [])
    with pytest.raises(
        DataError, match="lacks the columns item_id, is_follow, is_like, pos_items; it has user_id, is_cl"
    ):
        held.kuaivideo(tmp_path)
    write(tmp_path / "test.csv", held.KUAI, [("u1", "v1")])
    with pytest.raises(DataError, match="line 2: expected 6 values, got 2"):
        held.kuaivideo(tmp_path)
