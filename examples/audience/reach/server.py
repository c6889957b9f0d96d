"""The HTTP front: JSON questions, JSON answers, a page to click criteria together, metrics and readiness.

POST /v1/reach     {"query": ..., "of": "count" | "users" | "total" | "mean", "measure": ..., "by": feature,
                    "truth": "corrected", "category": ..., "holds": "fits" | "tags" | "errors"}
POST /v1/batch     {"questions": [...]}
POST /v1/overlap   {"first": query, "second": query}
POST /v1/curve     {"query": ..., "measure": ...}
POST /v1/forecast  {"query": ..., "day": feature, "days": 7}
GET  /v1/schema, /healthz, /readyz, /metrics, /
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from examples.audience.join import Corrected
from examples.audience.reach import query as queries
from examples.audience.reach.answer import Reach
from examples.audience.reach.curve import curve
from examples.audience.reach.estimator import Estimator, Question, Unavailable
from examples.audience.reach.forecast import forecast
from examples.audience.reach.schema import AudienceError

MAX_BODY = 65_536
"""Bytes of a request."""
MAX_BATCH = 256
"""Questions of one request."""
SECONDS = 5.0
"""For which a request may run."""
AT_ONCE = 32
"""Requests that run at once; the others wait."""
PAGE = Path(__file__).with_name("page.html")


class Front:
    """The endpoints over one estimator. corrected: for questions about true categories, or None."""

    def __init__(self, estimator: Estimator, corrected: Corrected | None = None) -> None:
        self.estimator, self.corrected = estimator, corrected
        self.registry = CollectorRegistry()
        named = {"registry": self.registry}
        self.requests = Counter("reach_requests", "Requests by endpoint and status.", ["path", "status"], **named)
        self.seconds = Histogram("reach_seconds", "How long requests took.", ["path"], **named)
        self.answered = Gauge("reach_answered", "Share of the sample that gave the last answer.", **named)
        self.limit = anyio.CapacityLimiter(AT_ONCE)

    def app(self) -> Starlette:
        asked = {"reach": self.reach, "batch": self.batch, "overlap": self.overlap, "curve": self.curve}
        asked["forecast"] = self.forecast
        posts = [Route(f"/v1/{name}", self._post(name, run), methods=["POST"]) for name, run in asked.items()]
        gets = [
            Route("/v1/schema", self.schema),
            Route("/healthz", lambda request: PlainTextResponse("ok\n")),
            Route("/readyz", self.ready),
            Route("/metrics", lambda request: Response(generate_latest(self.registry), media_type="text/plain")),
            Route("/", lambda request: FileResponse(PAGE)),
        ]
        return Starlette(routes=[*posts, *gets])

    def reach(self, body: dict[str, Any]) -> Any:
        """One question; with `by`, one answer a value of that feature."""
        query = queries.from_json(body.get("query", {"everybody": True}))
        if body.get("truth") is not None:
            return self._in_target(query, body)
        question = _question(query, body)
        if (by := body.get("by")) is not None:
            found = self.estimator.group_by(question, str(by))
            return {"by": [{"value": value, **self._plain(reach)} for value, reach in found.items()]}
        plain = self._plain(self.estimator.reach(question))
        nobody = queries.contradiction(query)
        return plain | {"note": nobody} if nobody else plain

    def batch(self, body: dict[str, Any]) -> Any:
        asked = body.get("questions")
        if not isinstance(asked, list) or not 1 <= len(asked) <= MAX_BATCH:
            raise AudienceError(f"`questions` is a list of 1 to {MAX_BATCH} questions")
        if not all(isinstance(each, dict) for each in asked):
            raise AudienceError("a question is an object with `query`")
        made = [_question(queries.from_json(each.get("query", {"everybody": True})), each) for each in asked]
        return {"answers": [self._plain(each) for each in self.estimator.batch(made)]}

    def overlap(self, body: dict[str, Any]) -> Any:
        first, second = (queries.from_json(body.get(name)) for name in ("first", "second"))
        found = self.estimator.overlap(first, second, body.get("of", "count"))
        parts = {name: self._plain(getattr(found, name)) for name in ("both", "first", "second")}
        return {**parts, "jaccard": found.jaccard}

    def curve(self, body: dict[str, Any]) -> Any:
        points = curve(self.estimator, queries.from_json(body.get("query")), str(body.get("measure")))
        return {
            "points": [
                {
                    "query": queries.to_json(point.query),
                    "loosened": point.loosened,
                    "reach": self._plain(point.reach),
                    "performance": self._plain(point.performance),
                }
                for point in points
            ]
        }

    def forecast(self, body: dict[str, Any]) -> Any:
        query = queries.from_json(body.get("query", {"everybody": True}))
        days = body.get("days", 7)
        if not isinstance(days, int) or isinstance(days, bool):
            raise AudienceError(f"`days` is a whole number; got {days!r:.40}")
        found = forecast(self.estimator, _question(query, body), str(body.get("day")), days)
        return {
            "past": {str(day): self._plain(reach) for day, reach in found.past.items()},
            "coming": {str(day): self._plain(reach) for day, reach in found.coming.items()},
            "growth": found.growth,
        }

    async def schema(self, request: Request) -> Response:
        schema, manifest = self.estimator.schema, self.estimator.manifest
        return JSONResponse(
            {
                "features": {each.name: list(each.values) for each in schema.features},
                "numbers": {each.name: list(each.edges) for each in schema.numbers},
                "measures": list(schema.measures),
                "users": manifest.users,
                "population": manifest.population,
                "rows": manifest.rows,
                "cover": list(manifest.cover),
                "categories": list(self.corrected.categories) if self.corrected else [],
            }
        )

    async def ready(self, request: Request) -> Response:
        """200 if some counter answers, else 503."""
        try:
            found = await run_in_threadpool(self.estimator.reach, Question(queries.Everybody()))
        except (Unavailable, AudienceError) as error:
            return JSONResponse({"ready": False, "error": str(error)}, 503)
        return JSONResponse({"ready": True, "answered": found.answered})

    def _in_target(self, query: queries.Query, body: dict[str, Any]) -> Any:
        if body["truth"] != "corrected":
            raise AudienceError(f"`truth` is 'corrected' or absent; got {body['truth']!r:.40}")
        if self.corrected is None:
            raise AudienceError("this server knows no source's quality; start it with `--campaigns`")
        found = self.corrected.reach(query, str(body.get("category")), body.get("holds", "fits"))
        halves = {"sampling": found.sampling, "quality": found.quality, "chance": found.chance}
        return (
            self._plain(found.reach)
            | {"tagged": self._plain(found.tagged), "half": halves, "holds": found.holds}
            | ({"notes": list(found.notes)} if found.notes else {})
        )

    def _plain(self, reach: Reach) -> dict[str, Any]:
        """JSON has no infinities: an end that is unknown is null."""
        self.answered.set(reach.answered)
        return {name: value if math.isfinite(value) else None for name, value in asdict(reach).items()}

    def _post(self, name: str, run: Callable[[dict[str, Any]], Any]) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint: body read within its limit, the work in a thread, errors as JSON with the status they have."""

        async def endpoint(request: Request) -> Response:
            began = time.perf_counter()
            status, answer = await self._run(request, run)
            self.requests.labels(name, status).inc()
            self.seconds.labels(name).observe(time.perf_counter() - began)
            return JSONResponse(answer, status)

        return endpoint

    async def _run(self, request: Request, run: Callable[[dict[str, Any]], Any]) -> tuple[int, Any]:
        try:
            with anyio.fail_after(SECONDS):
                body = await _body(request)
                return 200, await anyio.to_thread.run_sync(run, body, abandon_on_cancel=True, limiter=self.limit)
        except _TooLarge:
            return 413, {"error": f"a request has at most {MAX_BODY} bytes"}
        except AudienceError as error:
            return 422, {"error": str(error)}
        except Unavailable as error:
            return 503, {"error": str(error)}
        except TimeoutError:
            return 503, {"error": f"the request took longer than {SECONDS:g} s"}
        except ClientDisconnect:
            return 499, {"error": "the client is gone"}


class _TooLarge(Exception):
    pass


async def _body(request: Request) -> dict[str, Any]:
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > MAX_BODY:
            raise _TooLarge
    try:
        body = json.loads(bytes(read))
    except (ValueError, RecursionError):
        raise AudienceError("the request is no JSON") from None
    if not isinstance(body, dict):
        raise AudienceError("the request is a JSON object with `query`")
    return body


def _question(query: queries.Query, body: dict[str, Any]) -> Question:
    measure = body.get("measure")
    if measure is not None and not isinstance(measure, str):
        raise AudienceError(f"`measure` is the name of one; got {measure!r:.40}")
    return Question(query, body.get("of", "count"), measure)
