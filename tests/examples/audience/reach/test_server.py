"""The HTTP front: answers as the estimator gives them, and errors that a client can read, whatever is sent."""

import json
import re
import time

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from examples.audience.client import Client, Refused
from examples.audience.reach import server
from examples.audience.reach.build import build
from examples.audience.reach.counters import Local
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import In
from examples.audience.reach.server import MAX_BODY, Front
from tests.examples.audience.reach.population import COLUMNS, files


@pytest.fixture(scope="module")
def estimator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    build(files(folder / "population", days=2, rows=3000), COLUMNS, folder / "s", 800)
    return Estimator(Local(folder / "s"))


@pytest.fixture(scope="module")
def http(estimator):
    with TestClient(Front(estimator).app()) as client:
        yield client


@pytest.fixture(scope="module")
def client(estimator):
    transport = TestClient(Front(estimator).app())._transport
    with Client("http://test", transport=transport) as made:
        yield made


def test_answers_are_the_estimators(client, estimator):
    expected = estimator.reach(Question(In("country", ("DE",))))
    for query in ("country == 'DE'", {"feature": "country", "is": "DE"}):
        found = client.reach(query)
        assert (found["value"], found["low"], found["high"]) == (expected.value, expected.low, expected.high)
    assert client.batch([None, "premium"])[0]["value"] == pytest.approx(6000)
    by = client.reach("premium", by="device")["by"]
    assert {each["value"] for each in by} and sum(each["rows"] for each in by) == client.reach("premium")["rows"]
    assert 0 <= client.overlap("premium", "country == 'DE'")["jaccard"] <= 1
    points = client.curve("country == 'FR' and age >= 4", "click")
    assert points[-1]["query"] == {"everybody": True}
    assert client.reach("premium", of="mean", measure="click")["low"] is not None
    assert client.schema()["features"]["premium"] == [False, True]


def test_a_contradiction_is_said(client):
    found = client.reach("country == 'DE' and country == 'US'")
    assert found["value"] == 0 and "two values of 'country'" in found["note"]


@pytest.mark.parametrize(
    ("query", "question", "message"),
    [
        ("contry == 'DE'", {}, "did you mean 'country'"),
        ("premium", {"of": "mean", "measure": "clicks"}, "did you mean 'click'"),
        ("premium", {"truth": "corrected", "category": "x"}, "no source's quality is known"),
        ("premium", {"by": "spend"}, "is a number"),
        ({"and": []}, {}, "cannot read"),
    ],
)
def test_refusals_reach_the_client(client, query, question, message):
    with pytest.raises(Refused, match=message):
        client.reach(query, **question)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("reach", {"querry": "premium"}, "no field 'querry'; did you mean 'query'"),
        ("reach", {"q": "premium"}, "no field 'q'; there are 'query', 'of'"),
        ("reach", {"query": "premium", "group_by": "device"}, "no field 'group_by'"),
        ("reach", {"query": "premium", "category": "x"}, "`category` goes with `truth`"),
        ("reach", {"query": "premium", "holds": "tags"}, "`holds` goes with `truth`"),
        ("reach", {"query": "premium", "truth": False}, "'corrected' or absent; got False"),
        ("reach", {"query": None}, "a query is an object"),
        ("reach", {"query": ""}, "the query is empty"),
        ("reach", {"of": ""}, "count, users, total, mean"),
        ("reach", {"by": ["device"]}, "`by` is the name of a feature; got"),
        ("reach", {"query": {"number": "spend", "from": 10**400}}, "beyond all numbers"),
        ("reach", {"query": "spend < 1" + "0" * 400}, "beyond all numbers"),
        ("reach", {"query": "not " * 2000 + "premium"}, "cannot read|levels deep"),
        ("reach", {"query": {"feature": chr(0xD800), "is": 1}}, "no feature"),
        ("batch", {"questions": [{"query": "premium", "buy": "device"}]}, "no field 'buy'; did you mean 'by'"),
        ("batch", {"questions": ["premium"]}, "a question is an object"),
        ("batch", {"questions": [{}, {"query": "contry == 'DE'"}]}, "question 2: there is no feature 'contry'"),
        ("batch", {"queries": []}, "no field 'queries'; there are 'questions'"),
        ("overlap", {"first": "premium"}, "`second` is missing: an audience"),
        ("overlap", {"first": "premium", "second": "premium", "measure": "click"}, "no field 'measure'"),
        ("overlap", {"first": "premium", "second": "premium", "of": "total"}, "of count or users"),
        ("curve", {"query": "premium"}, "`measure` is missing: a measure of the sample; there are 'click'"),
        ("curve", {"query": "premium", "measure": 3}, "`measure` is the name of a measure"),
        ("curve", {"query": "premium", "measure": "click", "by": "device"}, "no field 'by'"),
        ("forecast", {"query": "premium"}, "`day` is missing: a feature with days"),
        ("forecast", {"day": "device", "of": "mean"}, "of count or users"),
        ("forecast", {"day": "device", "measure": "click"}, "no field 'measure'"),
    ],
)
def test_what_is_not_read_is_refused_by_name(http, path, body, message):
    response = http.post(f"/v1/{path}", content=json.dumps(body))
    assert response.status_code == 422 and re.search(message, response.json()["error"]), response.text


def test_a_batch_takes_all_that_one_question_takes(client):
    questions = [{"query": "premium", "by": "device"}, {"query": "premium", "of": "mean", "measure": "click"}]
    questions += [{"query": "country == 'DE' and country == 'US'"}, {"query": "everybody"}]
    found = client.batch(questions)
    assert found == [client.reach(**each) for each in questions]
    assert "by" in found[0] and "note" in found[2]
    assert client.batch(["premium", {"feature": "premium", "is": True}, None]) == [
        *[client.reach("premium")] * 2,
        client.reach(),
    ]


def test_exact_counts_are_whole(client, estimator):
    for query in (None, "premium", "country == 'DE' and premium"):
        found = client.reach(query)
        assert found["low"] == found["value"] == found["high"] == round(found["value"])
    by = client.reach("premium", by="device")["by"]
    assert all(each["value"] == round(each["value"]) for each in by if each["low"] == each["high"])


def test_the_client_asks_of_everybody_where_there_is_no_query(client):
    [point] = client.curve(None, "click")
    assert point["query"] == {"everybody": True}
    assert client.overlap(None, "premium")["second"]["value"] == 0
    with pytest.raises(TypeError, match="off"):
        client.reach("premium", off="users")
    with pytest.raises(Refused, match="not written as 2026-11-29"):
        client.forecast(None, "device")


def test_work_stops_at_its_deadline(http, monkeypatch):
    monkeypatch.setattr(server, "SECONDS", 0.2)
    slow = {"questions": [{"query": "premium", "by": "country", "of": "mean", "measure": "click"}] * 256}
    assert http.post("/v1/batch", json=slow).status_code == 503
    began = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - began < 0.4


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda x: json.dumps(x).encode())
)
@settings(max_examples=60, deadline=None)
def test_no_bytes_do_more_than_be_refused(http, body):
    for path in ("reach", "batch", "overlap", "curve", "forecast"):
        response = http.post(f"/v1/{path}", content=body)
        assert response.status_code in (200, 422) and response.json()


def test_limits(http):
    assert http.post("/v1/reach", content=b" " * (MAX_BODY + 1)).status_code == 413
    many = {"questions": [{"query": "premium"}] * 300}
    assert http.post("/v1/batch", json=many).status_code == 422
    assert http.get("/v1/reach").status_code == 405


def test_no_number_is_json_that_no_parser_reads(http):
    response = http.post("/v1/reach", json={"query": "country == 'IS' and age < 0", "of": "mean", "measure": "click"})
    assert response.json()["value"] is None and "NaN" not in response.text


def test_readiness_and_metrics(http, estimator):
    assert http.get("/healthz").text == "ok\n"
    ready, sample = http.get("/readyz").json(), http.get("/v1/schema").json()["sample"]
    assert ready["ready"] and ready["sample"]["created"] == sample["created"] and 0 <= sample["age"] < 3600
    assert sample["files"] == 2 and sample["identity"] == estimator.manifest.identity
    http.post("/v1/reach", json={"query": "premium"})
    text = http.get("/metrics").text
    assert 'reach_requests_total{path="reach",status="200"}' in text and "reach_seconds_bucket" in text
    assert "reach_sample_created_seconds 1" in text

    class Silent:
        manifest, model, lost = estimator.manifest, estimator.counters.model, {}

        def ask(self, asks, seconds):
            return {}

    with TestClient(Front(Estimator(Silent())).app()) as silent:
        assert silent.get("/readyz").status_code == 503
        response = silent.post("/v1/reach", json={"query": "premium"})
        assert response.status_code == 503 and "no counter answered" in response.json()["error"]


def test_the_client_says_what_is_no_answer():
    transport = httpx.MockTransport(lambda request: httpx.Response(500))
    with Client("http://test", transport=transport) as broken, pytest.raises(httpx.HTTPStatusError):
        broken.reach("premium")
