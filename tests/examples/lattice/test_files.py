"""A file is whole or as it was, whoever writes beside it."""

from __future__ import annotations

import json

import pytest

from examples.lattice.files import whole, write_json


def test_writers_of_two_files_with_one_stem_do_not_meet(tmp_path):
    """Each writes to a path of its own, until its file is whole."""
    with whole(tmp_path / "run.a") as first, whole(tmp_path / "run.b") as second, whole(tmp_path / "run.a") as third:
        assert len({first, second, third}) == 3
        for path, text in ((first, "a"), (second, "b"), (third, "c")):
            path.write_text(text)
        assert not (tmp_path / "run.a").exists()
    assert (tmp_path / "run.a").read_text() == "a" and (tmp_path / "run.b").read_text() == "b"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.a", "run.b"]


def test_a_writer_that_fails_leaves_the_file_as_it_was(tmp_path):
    write_json(tmp_path / "r.json", {"a": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "r.json", {"a": object()})
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "r.json") as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
