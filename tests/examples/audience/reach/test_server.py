"""The HTTP front: answers as the estimator gives them, and errors that a client can read, whatever is sent."""

import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from examples.audience.client import Client, Refused
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
        ("premium", {"truth": "corrected", "category": "x"}, "knows no source's quality"),
        ("premium", {"by": "spend"}, "is a number"),
        ({"and": []}, {}, "cannot read"),
    ],
)
def test_refusals_reach_the_client(client, query, question, message):
    with pytest.raises(Refused, match=message):
        client.reach(query, **question)


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
    assert http.get("/healthz").text == "ok\n" and http.get("/readyz").json()["ready"]
    http.post("/v1/reach", json={"query": "premium"})
    text = http.get("/metrics").text
    assert 'reach_requests_total{path="reach",status="200"}' in text and "reach_seconds_bucket" in text

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
