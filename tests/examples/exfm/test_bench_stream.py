import json

from examples.exfm import bench_stream


def test_it_rehearses(tmp_path):
    command = ["--work", str(tmp_path), "--quick", "--json", str(tmp_path / "found.json")]
    found = bench_stream.main(command)
    assert list(found) == ["reading", "DAS", "DAS, a tiny teacher"]
    assert len({each.events for each in found.values()}) == 1 and 5000 < found["DAS"].events < 7000
    assert all(len(each.memory) == bench_stream.LOOKS and each.cpu > 0 for each in found.values())
    assert json.loads((tmp_path / "found.json").read_text())["DAS"]["grew"] == found["DAS"].grew
