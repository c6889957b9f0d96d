"""torch's structured trace (TORCH_TRACE), which `tlparse` shows."""

from __future__ import annotations

from torch._logging import trace_structured
from torch._logging._internal import trace_log


def is_tracing() -> bool:
    """Whether anybody listens (torch._logging._internal.trace_log, seen with torch 2.13): the handler that torch puts
    there at first goes with the first thing that is written, before a graph comes to us."""
    return bool(trace_log.handlers)


def trace_artifact(name: str, encoding: str, payload: str) -> None:
    """Write an artifact under the compile id in progress. encoding: json or string
    (torch._logging._internal.trace_structured_artifact, seen with torch 2.13)."""
    metadata = {"name": name, "encoding": encoding}
    trace_structured("artifact", metadata_fn=lambda: metadata, payload_fn=lambda: payload, expect_trace_id=False)
