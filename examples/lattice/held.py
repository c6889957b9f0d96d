"""Data sets that one must hold: KuaiVideo, Criteo's conversion log, Taobao's ads. None can be downloaded here.

Each loader names the files and columns it expects, and says which is missing. The tests write small files of the same
schemas. Ids are numbered over the first 80 % of the rows in the order of time; other values become UNKNOWN.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from examples.lattice.data import Data, DataError, Rows, numbered, standardised
from examples.lattice.delays import NEVER
from examples.movielens import UNKNOWN, number, pad

KUAI = ("user_id", "item_id", "is_click", "is_follow", "is_like", "pos_items")
SAMPLE = ("user", "time_stamp", "adgroup_id", "pid", "nonclk", "clk")
AD = ("adgroup_id", "cate_id", "campaign_id", "customer", "brand", "price")
PROFILE = (
    "userid",
    "cms_segid",
    "cms_group_id",
    "final_gender_code",
    "age_level",
    "pvalue_level",
    "shopping_level",
    "occupation",
    "new_user_class_level",
)
CRITEO_NUMBERS, CRITEO_FIELDS = 8, 9
HISTORY = 100  # films kept of a KuaiVideo history


@dataclass(frozen=True, eq=False)
class Conversions:
    """A data set whose label comes late: `delay` (N,) is the seconds from click to conversion, inf where there is none,
    for the rows of `data.everything()`. It knows more than the labels of `data.train`, which are those of the split."""

    data: Data
    delay: Tensor


def kuaivideo(folder: Path) -> Data:
    """KuaiVideo_x1 as BARS splits it: `train.csv` and `test.csv`; click, follow, like; one domain.

    Columns: KUAI and perhaps `timestamp`; `pos_items` holds earlier clicked items joined by ^ (as its configurations
    read it; the file itself could not be opened here). Each part is sorted by `timestamp`; without one, or at the same
    time, rows stay in the file's order.
    """
    parts = [
        sorted(_csv(folder / f"{name}.csv", KUAI, "KuaiVideo_x1 of BARS"), key=_timestamp) for name in ("train", "test")
    ]
    for name, part in zip(("train", "test"), parts, strict=True):
        _some(part, folder / f"{name}.csv")
    rows, cut = parts[0] + parts[1], len(parts[0])
    ids, cardinalities = numbered([(row["user_id"], row["item_id"]) for row in rows], cut)
    bags = [[item for item in row["pos_items"].split("^") if item][-HISTORY:] for row in rows]
    known = number(item for bag in bags[:cut] for item in bag)
    tasks = ("is_click", "is_follow", "is_like")
    everything = _rows(
        ids=ids,
        bag=pad([[known.get(item, UNKNOWN) for item in bag] or [UNKNOWN] for bag in bags]),
        labels=torch.tensor([[float(row[task]) for task in tasks] for row in rows]),
        times=torch.tensor([_timestamp(row) for row in rows]),
        keys=[(row["user_id"], row["item_id"]) for row in rows],
    )
    names = tuple(task.removeprefix("is_") for task in tasks)
    size = len(known) + 1
    parts = everything[:cut], everything[cut:]
    return Data("kuaivideo", *parts, ("user", "item"), cardinalities, size, (), ("kuaishou",), names)


def criteo_file(path: Path) -> dict[str, str | int]:
    """Which file it is: its name, bytes and checksum. Figures that were kept of another are not this one's."""
    _criteo_there(path)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "blake2b").hexdigest()[:16]
    return {"name": path.name, "bytes": path.stat().st_size, "checksum": found}


def criteo(path: Path, test_share: float = 0.2, scaled_share: float | None = None) -> Conversions:
    """Criteo's conversion log (Chapelle, KDD 2014), `data.txt`: no header, tabs, 19 columns: seconds of the click
    and of the conversion (empty: none), 8 integers, 9 categories.

    A training row's label is what was known at the split, the second of the first test row: a conversion that was not
    there before is a 0, as it was for whoever trained then. Test rows have the labels of the whole file, and `delay`
    has all conversions of all rows.

    scaled_share: the share of rows, the first, whose means and deviations the integers are standardised by; by default
    those of training. Whoever trains along the log gives what lies before the start.
    """
    _criteo_there(path)
    width = 2 + CRITEO_NUMBERS + CRITEO_FIELDS
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for line, row in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
            if len(row) != width:
                raise DataError(f"{path}, line {line}: expected {width} columns between tabs, got {len(row)}")
            rows.append((*_criteo_numbers(row, path, line), row[2 + CRITEO_NUMBERS :]))
    _some(rows, path)
    rows.sort(key=lambda row: row[0])
    cut = round(len(rows) * (1 - test_share))
    clicked, second, integers, values = zip(*rows, strict=True)
    times, converted = torch.tensor(clicked), torch.tensor(second, dtype=torch.float64)
    delay = converted - times
    if bool((delay < 0).any()):
        raise DataError(f"{path}: a conversion is earlier than its click")
    ids, cardinalities = numbered([tuple(row) for row in values], cut)
    numbers = torch.log1p(torch.tensor(integers).clamp(min=0))
    split = float(times[cut]) if cut < len(rows) else NEVER
    train = torch.arange(len(rows)) < cut
    scaled = train if scaled_share is None else torch.arange(len(rows)) < max(1, round(len(rows) * scaled_share))
    known = (delay < NEVER) & ~(train & (converted >= split))
    everything = _rows(
        ids=ids,
        bag=torch.zeros(len(rows), 1, dtype=torch.int64),
        dense=standardised(numbers, scaled),
        labels=known.float()[:, None],
        times=times,
        keys=[(tuple(row), row[0]) for row in values],
    )
    names = tuple(f"category {i}" for i in range(1, CRITEO_FIELDS + 1))
    columns = tuple(f"integer {i}" for i in range(1, CRITEO_NUMBERS + 1))
    parts = everything[:cut], everything[cut:]
    return Conversions(Data("criteo", *parts, names, cardinalities, 1, columns, ("all",), ("conversion",)), delay)


def taobao(folder: Path, test_share: float = 0.125) -> Data:
    """Taobao's display ads: `raw_sample.csv`, `ad_feature.csv`, `user_profile.csv`; clicks; domains are the two places
    (`pid`) an ad is shown at. The last eighth by time (a day of eight) is for testing."""
    where = "the Tianchi data set 56, Ad Display/Click Data"
    ads = {row["adgroup_id"]: row for row in _csv(folder / "ad_feature.csv", AD, where)}
    people = {row["userid"]: row for row in _csv(folder / "user_profile.csv", PROFILE, where)}
    rows = sorted(_csv(folder / "raw_sample.csv", SAMPLE, where), key=lambda row: int(row["time_stamp"]))
    _some(rows, folder / "raw_sample.csv")
    cut = round(len(rows) * (1 - test_share))
    nobody, nothing = dict.fromkeys(PROFILE, ""), dict.fromkeys(AD, "")
    person, ad = (
        [people.get(row["user"], nobody) for row in rows],
        [ads.get(row["adgroup_id"], nothing) for row in rows],
    )
    values = [
        (row["user"], row["adgroup_id"], *(p[name] for name in PROFILE[1:]), *(a[name] for name in AD[1:-1]))
        for row, p, a in zip(rows, person, ad, strict=True)
    ]
    ids, cardinalities = numbered(values, cut)
    price = torch.log1p(torch.tensor([[float(a["price"] or 0)] for a in ad]))
    places = sorted({row["pid"] for row in rows})
    everything = _rows(
        ids=ids,
        bag=torch.zeros(len(rows), 1, dtype=torch.int64),
        dense=standardised(price, torch.arange(len(rows)) < cut),
        domain=torch.tensor([places.index(row["pid"]) for row in rows]),
        labels=torch.tensor([[float(row["clk"])] for row in rows]),
        times=torch.tensor([int(row["time_stamp"]) for row in rows]),
        keys=[(row["user"], row["adgroup_id"]) for row in rows],
    )
    names = ("user", "ad", *PROFILE[1:], *AD[1:-1])
    parts = everything[:cut], everything[cut:]
    return Data("taobao", *parts, names, cardinalities, 1, ("price",), tuple(places), ("click",))


def _rows(
    *, ids: Tensor, bag: Tensor, labels: Tensor, times: Tensor, keys: list[tuple[object, object]], **more: Tensor
) -> Rows:
    """Rows of one domain without numbers, unless `more` says otherwise; users and items are numbered."""
    users, items = (number(column) for column in zip(*keys, strict=True))
    places = {
        "dense": torch.zeros(len(ids), 0),
        "domain": torch.zeros(len(ids), dtype=torch.int64),
        "users": torch.tensor([users[user] for user, _ in keys]),
        "items": torch.tensor([items[item] for _, item in keys]),
    }
    return Rows(ids=ids, bag=bag, labels=labels, times=times, **{**places, **more})


def _criteo_there(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing: Criteo's conversion log ships as data.txt; give its path")


def _criteo_numbers(row: list[str], path: Path, line: int) -> tuple[int, float, list[float]]:
    """Seconds of the click and of the conversion, inf for none, and the integers, 0 for none."""
    try:
        seconds = int(row[0]), int(row[1]) if row[1] else NEVER
        return *seconds, [float(int(value or 0)) for value in row[2 : 2 + CRITEO_NUMBERS]]
    except ValueError as error:
        expected = f"the click's second, the conversion's or nothing, and {CRITEO_NUMBERS} integers or nothing"
        raise DataError(f"{path}, line {line}: expected {expected}, got {row[: 2 + CRITEO_NUMBERS]}") from error


def _timestamp(row: dict[str, str]) -> int:
    """A KuaiVideo row's, 0 where the file has none."""
    return int(float(row.get("timestamp") or 0))


def _some(rows: Sized, path: Path) -> None:
    if not len(rows):
        raise DataError(f"{path} has no rows: expected one impression or more; is the download whole?")


def _csv(path: Path, columns: tuple[str, ...], where: str) -> Iterator[dict[str, str]]:
    """The rows of a file with a header, which must have these columns."""
    if not path.is_file():
        raise DataError(f"{path} is missing; it is part of {where}, which must be downloaded by hand")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        names = [name.strip() for name in next(reader, [])]
        missing = [name for name in columns if name not in names]
        if missing:
            raise DataError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(names) or 'none'}")
        for line, row in enumerate(reader, start=2):
            if len(row) != len(names):
                raise DataError(f"{path}, line {line}: expected {len(names)} values, got {len(row)}")
            yield dict(zip(names, row, strict=True))
