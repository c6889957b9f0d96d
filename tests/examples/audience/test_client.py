"""The client goes to another server when one is gone, and says so when none is there."""

import time

import httpx
import pytest

from examples.audience.client import Client, Refused


def transport(gone, asked):
    def answer(request):
        asked.append(request.url.host)
        if request.url.host in gone:
            raise httpx.ConnectError("refused", request=request)
        if request.url.host == "busy":
            return httpx.Response(503, json={"error": "no counter answered"})
        return httpx.Response(200, json={"value": 7})

    return httpx.MockTransport(answer)


def test_the_next_server_answers():
    asked = []
    with Client(["http://dead", "http://busy", "http://well"], transport=transport({"dead"}, asked)) as client:
        assert client.reach("premium")["value"] == 7 and asked == ["dead", "busy", "well"]
        assert client.reach("premium")["value"] == 7 and asked[3:] == ["well"]  # the others are aside


def test_servers_are_asked_in_turn_and_one_that_is_back_too(monkeypatch):
    gone, asked = {"b"}, []
    with Client(["http://a", "http://b", "http://c"], transport=transport(gone, asked)) as client:
        for _ in range(4):
            client.reach("premium")
        assert asked == ["a", "b", "c", "a", "c"]
        gone.clear()
        later = time.monotonic() + 2
        monkeypatch.setattr("examples.audience.client.time.monotonic", lambda: later)
        del asked[:]
        for _ in range(3):
            client.reach("premium")
        assert sorted(asked) == ["a", "b", "c"]


def test_no_server_is_an_error_in_bounded_time():
    gone = transport({"a", "b"}, [])
    with Client(["http://a", "http://b"], seconds=0.2, transport=gone) as client, pytest.raises(httpx.ConnectError):
        client.reach("premium")


def test_a_question_that_is_wrong_is_asked_once():
    asked = []

    def refuse(request):
        asked.append(request)
        return httpx.Response(422, json={"error": "there is no feature 'contry'; did you mean 'country'?"})

    two, refused = Client(["http://a", "http://b"], transport=httpx.MockTransport(refuse)), pytest.raises(Refused)
    with two as client, refused as error:
        client.reach("contry == 'DE'")
    assert "did you mean 'country'" in str(error.value)
    assert len(asked) == 1
