"""A client of the server: plain data in, plain data out; needs httpx and nothing of loka.

from examples.audience.client import Client

with Client("http://localhost:8000") as reach:
    print(reach.reach('country == "DE" and age in ("18-24", "25-34")'))
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import httpx


class Refused(ValueError):
    """A question that the server cannot answer; the message says why and names the nearest valid name."""


class Client:
    """seconds: how long to wait. A query is text or the JSON of query.py."""

    def __init__(self, address: str, seconds: float = 10.0, transport: httpx.BaseTransport | None = None) -> None:
        self.http = httpx.Client(base_url=address, timeout=seconds, transport=transport)

    def schema(self) -> dict[str, Any]:
        return self._answer(self.http.get("/v1/schema"))

    def reach(self, query: Any = None, **question: Any) -> dict[str, Any]:
        """`of`, `measure`, `by`, `truth` and `category` as the server's README has them."""
        return self._ask("reach", _query(query) | question)

    def batch(self, queries: list[Any]) -> list[dict[str, Any]]:
        return self._ask("batch", {"questions": [_query(each) for each in queries]})["answers"]

    def overlap(self, first: Any, second: Any) -> dict[str, Any]:
        return self._ask("overlap", {"first": first, "second": second})

    def curve(self, query: Any, measure: str) -> list[dict[str, Any]]:
        return self._ask("curve", {"query": query, "measure": measure})["points"]

    def forecast(self, query: Any, day: str, days: int = 7) -> dict[str, Any]:
        return self._ask("forecast", _query(query) | {"day": day, "days": days})

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.http.close()

    def _ask(self, what: str, body: dict[str, Any]) -> Any:
        return self._answer(self.http.post(f"/v1/{what}", json=body))

    def _answer(self, response: httpx.Response) -> Any:
        if response.status_code in (413, 422):
            raise Refused(response.json()["error"])
        response.raise_for_status()
        return response.json()


def _query(query: Any) -> dict[str, Any]:
    return {} if query is None else {"query": query}
