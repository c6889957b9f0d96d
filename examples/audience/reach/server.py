"""The HTTP front: JSON questions, JSON answers, a page to click criteria together, metrics and readiness.

POST /v1/reach, /v1/batch, /v1/overlap, /v1/curve, /v1/forecast: the questions of asking.py
GET  /v1/schema, /healthz, /readyz, /metrics, /
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
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
from examples.audience.reach import deadline
from examples.audience.reach import query as queries
from examples.audience.reach.asking import FIELDS, Asking
from examples.audience.reach.estimator import Estimator, Question, Unavailable
from examples.audience.reach.schema import AudienceError

MAX_BODY = 65_536
"""Bytes of a request."""
SECONDS = 5.0
"""For which a request may run; what it started stops soon after."""
AT_ONCE = 32
"""Requests that run at once; the others wait."""
PAGE = Path(__file__).with_name("page.html")


class Front:
    """The endpoints over one estimator. corrected: for questions about true categories, or None."""

    def __init__(self, estimator: Estimator, corrected: Corrected | None = None) -> None:
        self.registry = CollectorRegistry()
        named = {"registry": self.registry}
        self.requests = Counter("reach_requests", "Requests by endpoint and status.", ["path", "status"], **named)
        self.seconds = Histogram("reach_seconds", "How long requests took.", ["path"], **named)
        self.answered = Gauge("reach_answered", "Share of the sample that gave the last answer.", **named)
        created = Gauge("reach_sample_created_seconds", "When the sample was drawn, seconds since 1970.", **named)
        created.set(estimator.manifest.created)
        self.asking = Asking(estimator, corrected, lambda reach: self.answered.set(reach.answered))
        self.limit = anyio.CapacityLimiter(AT_ONCE)

    def app(self) -> Starlette:
        posts = [
            Route(f"/v1/{name}", self._post(name, getattr(self.asking, name)), methods=["POST"]) for name in FIELDS
        ]
        gets = [
            Route("/v1/schema", self.schema),
            Route("/healthz", lambda request: PlainTextResponse("ok\n")),
            Route("/readyz", self.ready),
            Route("/metrics", lambda request: Response(generate_latest(self.registry), media_type="text/plain")),
            Route("/", lambda request: FileResponse(PAGE)),
        ]
        return Starlette(routes=[*posts, *gets])

    async def schema(self, request: Request) -> Response:
        return JSONResponse(self.asking.schema())

    async def ready(self, request: Request) -> Response:
        """200 if some counter answers, else 503."""
        try:
            found = await run_in_threadpool(self.asking.estimator.reach, Question(queries.Everybody()))
        except (Unavailable, AudienceError) as error:
            return JSONResponse({"ready": False, "error": str(error)}, 503)
        return JSONResponse({"ready": True, "answered": found.answered, "sample": self.asking.sample()})

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
                with deadline.within(SECONDS):
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
