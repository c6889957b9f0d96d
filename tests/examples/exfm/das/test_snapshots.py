import json

import pytest
import torch

from examples.exfm.das.snapshots import SnapshotError, Snapshots


@pytest.fixture
def snapshots(tmp_path):
    found = Snapshots(tmp_path, keep=2)
    for version, until in ((1, 100), (2, 200), (3, 300), (4, 400)):
        found.publish(version, until, until - 50, {"w": torch.full((3,), float(version))}, {"size": version})
    return found


def test_one_is_found_by_the_time_that_it_was_published(snapshots):
    assert [getattr(snapshots.at(time), "version", None) for time in (99, 100, 250, 400, 999)] == [None, 1, 2, 4, 4]
    weights, said = snapshots.read(3)
    assert weights["w"].tolist() == [3, 3, 3] and said == {"size": 3}
    assert Snapshots(snapshots.folder / "none").at(999) is None


def test_publishing_again_replaces(snapshots):
    snapshots.publish(2, 210, 200, {"w": torch.zeros(1)}, {})
    assert snapshots.at(209).version == 1 and snapshots.at(210).version == 2
    assert snapshots.read(2)[0]["w"].tolist() == [0] and len(snapshots.index()) == 4


def test_a_crash_while_publishing_leaves_what_was(snapshots, monkeypatch):
    """The file is there and the index does not know it: nobody sees it."""
    monkeypatch.setattr(Snapshots, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        snapshots.publish(5, 500, 490, {"w": torch.zeros(1)}, {})
    monkeypatch.undo()
    assert snapshots.at(999).version == 4
    snapshots.publish(5, 500, 490, {"w": torch.ones(1)}, {})
    assert snapshots.at(999).version == 5


def test_rolling_back(snapshots):
    assert snapshots.roll_back(2).version == 2
    assert snapshots.at(999).version == 2 and snapshots.at(150).version == 1
    snapshots.publish(5, 500, 490, {"w": torch.zeros(1)}, {})
    assert snapshots.at(999).version == 5  # a new one counts again
    with pytest.raises(SnapshotError, match="no snapshot 9 to go back to"):
        snapshots.roll_back(9)


def test_rotation_keeps_what_a_run_set_back_will_ask_for(snapshots):
    assert [each.version for each in snapshots.rotate(300)] == [1]
    assert [each.version for each in snapshots.index()] == [2, 3, 4]  # two trained by 300, and a later one
    assert not (snapshots.folder / "teacher-000001.safetensors").exists()
    assert not snapshots.rotate(300) and [each.version for each in snapshots.rotate(400)] == [2]


def test_damage_is_told_from_good(snapshots):
    path = snapshots.folder / "teacher-000003.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match="not what was published"):
        snapshots.read(3)
    path.unlink()
    with pytest.raises(SnapshotError, match="cannot be read"):
        snapshots.read(3)
    with pytest.raises(SnapshotError, match=r"has no snapshot 7; it has \[1, 2, 3, 4\]"):
        snapshots.read(7)
    (snapshots.folder / "index.json").write_text(json.dumps([{"version": 1}]))
    with pytest.raises(SnapshotError, match="the next snapshot begins a new one"):
        snapshots.index()
    assert snapshots.checksum(3) is None and snapshots.rotate(10**12) == []
    snapshots.publish(9, 10**10, 10**10, {"a": torch.zeros(1)}, {})
    assert [each.version for each in snapshots.index()] == [9]
