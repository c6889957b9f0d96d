"""A report of an online session: its plan, the errors seen since, and the demotion. Graphs run op by op here."""

from __future__ import annotations

import pytest
import torch

from loka_compile.online.pace import AT_LEAST
from loka_compile.report import document
from tests.online.sessions import WATCHFUL, drift, mlp, online_compile, outliers

pytestmark = [pytest.mark.usefixtures("op_by_op")]


@pytest.fixture
def strayed(fresh_dynamo, tmp_path, monkeypatch):
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    model, x = mlp(), torch.randn(64, 32)
    compiled = online_compile(model, **WATCHFUL)
    drift(compiled, x, 2 * AT_LEAST + 10)
    drift(compiled, outliers(x), 2 * AT_LEAST)
    return document.of_compiled(compiled)


def test_what_happened_to_a_session(strayed, valid):
    assert valid(strayed) == []
    [session] = strayed["online"]
    kinds = [kind for _, kind, _ in session["events"]]
    assert kinds[0] == "planned" and kinds.count("demoted") == 2 == kinds[1:].count("demoted")
    assert session["events"][0][2].startswith("2 of 2 sites lowered")
    for site, found in session["seen"].items():
        errors, calls = [mere for _, mere in found], [at for at, _ in found]
        assert calls == sorted(calls) and len(found) >= 3, site
        assert max(errors[:2]) <= session["max_mere"] < errors[-1]
    assert session["measured"] >= 3 and session["calls"] >= 3 * AT_LEAST and session["status"].startswith("online: ")
