"""Compiling ahead of time, to be saved (torch._dynamo.aot_compile, seen with torch 2.13). Not among the names of the
package: it imports Dynamo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable, SerializableCallable

from loka_compile.compat.few_files import in_few_files


class Serializable(SerializableCallable):
    """The result of compile_fx for a graph, in a class of the caller's own.

    A saved one names the module of its class, which is imported when it is loaded.
    """

    def __init__(self, compiled: Callable[..., Any]) -> None:
        self._compiled = compiled

    def __call__(self, *args: Any) -> Any:
        return self._compiled(*args)

    @classmethod
    def serialize_compile_artifacts(cls, fn: Any) -> bytes:
        return BundledAOTAutogradSerializableCallable.serialize_compile_artifacts(
            BundledAOTAutogradSerializableCallable(fn._compiled)
        )

    @classmethod
    def deserialize_compile_artifacts(cls, data: bytes) -> Any:
        with in_few_files():  # where what was compiled here is found
            return BundledAOTAutogradSerializableCallable.deserialize_compile_artifacts(data)
