"""A client of one or more servers: plain data in, plain data out; needs httpx and nothing of loka.

from examples.audience.client import Client

with Client("http://localhost:8000") as reach:
    print(reach.reach('country == "DE" and age in ("18-24", "25-34")'))
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import httpx

PATIENCE = 2.0
"""Seconds that one of several servers has to answer."""
ASIDE = 1.0
"""Seconds for which one that did not answer is asked only if no other is left."""
PAUSE = 0.02
"""Seconds before the next one is asked."""


class Refused(ValueError):
    """A question that the server cannot answer; the message says why and names the nearest valid name."""


class Client:
    """Asks a server; where there are several, each in turn, and the next one when one does not answer, until `seconds`
    have passed. So one that was started again gets its share, and the others do not keep its load.

    Questions change nothing, so asking twice does no harm. A query is a line of text, or a
    dictionary, as README.md has them; None is everybody.
    """

    def __init__(
        self, address: str | Sequence[str], seconds: float = 10.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        addresses = [address] if isinstance(address, str) else list(address)
        patience = seconds if len(addresses) == 1 else min(seconds, PATIENCE)
        timeout = httpx.Timeout(patience, connect=min(1.0, patience))
        self.seconds = seconds
        self.https = [httpx.Client(base_url=each, timeout=timeout, transport=transport) for each in addresses]
        self._turn = -1
        self._aside = [0.0] * len(addresses)

    def schema(self) -> dict[str, Any]:
        return self._send("GET", "/v1/schema")

    def reach(
        self,
        query: Any = None,
        *,
        of: str | None = None,
        measure: str | None = None,
        by: str | None = None,
        truth: str | None = None,
        category: str | None = None,
        holds: str | None = None,
    ) -> dict[str, Any]:
        """How many match; without a query, of everybody.

        of: "count" (the default), "users", "total" or "mean", the last two of a `measure`. by: a feature: one answer a
        value. truth="corrected": how many are of `category`, whatever their tags say; holds: "tags" or "errors".
        """
        fields = {"of": of, "measure": measure, "by": by, "truth": truth, "category": category, "holds": holds}
        return self._ask("reach", _query(query) | {name: value for name, value in fields.items() if value is not None})

    def batch(self, questions: list[Any]) -> list[dict[str, Any]]:
        """Several at once. A question is a query, or {"query": ..., "of": ...} with all that `reach` takes."""
        asked = [each if isinstance(each, dict) and "query" in each else _query(each) for each in questions]
        return self._ask("batch", {"questions": asked})["answers"]

    def overlap(self, first: Any, second: Any, of: str = "count") -> dict[str, Any]:
        """Who is in `both`, in the `first` alone and in the `second` alone; `jaccard`: both over either."""
        return self._ask("overlap", {"first": _all(first), "second": _all(second), "of": of})

    def curve(self, query: Any, measure: str) -> list[dict[str, Any]]:
        """Reach against the measure's mean as the query's criteria are loosened, cheapest first."""
        return self._ask("curve", {"query": _all(query), "measure": measure})["points"]

    def forecast(self, query: Any, day: str, days: int = 7, of: str = "count") -> dict[str, Any]:
        """How many will match on coming days. day: the feature that holds days as text, 2026-11-29."""
        return self._ask("forecast", {"query": _all(query), "day": day, "days": days, "of": of})

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for http in self.https:
            http.close()

    def _ask(self, what: str, body: dict[str, Any]) -> Any:
        return self._send("POST", f"/v1/{what}", json=body)

    def _send(self, method: str, path: str, **options: Any) -> Any:
        """The answer of the first server that has one. Raises what the last one said when none has in time."""
        until = time.monotonic() + self.seconds
        while True:
            number = self._next()
            try:
                response = self.https[number].request(method, path, **options)
                if response.status_code in (413, 422):
                    raise Refused(response.json()["error"])
                response.raise_for_status()
                return response.json()
            except (httpx.TransportError, httpx.HTTPStatusError):
                if len(self.https) == 1 or time.monotonic() + PAUSE > until:
                    raise
                self._aside[number] = time.monotonic() + ASIDE
                time.sleep(PAUSE)

    def _next(self) -> int:
        """The server whose turn it is, of those that are not aside; of all, the one that was put there first."""
        now, count = time.monotonic(), len(self.https)
        turns = [(self._turn + i) % count for i in range(1, count + 1)]
        self._turn = next((i for i in turns if self._aside[i] <= now), min(turns, key=self._aside.__getitem__))
        return self._turn


def _query(query: Any) -> dict[str, Any]:
    return {} if query is None else {"query": query}


def _all(query: Any) -> Any:
    return {"everybody": True} if query is None else query
