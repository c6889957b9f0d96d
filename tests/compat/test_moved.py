"""What is spelled otherwise from version to version does here what it is for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch._subclasses import FakeTensorMode

from loka_compile.compat.moved import (
    cpu_int_mm_takes_uint8,
    cpu_scaled_mm_takes_rows,
    fsdp_groups,
    loops_of,
    put_back,
    say_if_untested,
)


class Cache:
    def __init__(self) -> None:
        self.cleared: list[object] = []

    def clear_cache(self, node: object) -> None:
        self.cleared.append(node)


def test_loops_are_put_back_where_nodes_cannot_do_it() -> None:
    """As in torch 2.11 and 2.12."""
    node = SimpleNamespace(_body="b", _sizes="s", group="g", read_writes="r", unmet_dependencies="u", other=1)
    node.pointwise_read_writes = cache = Cache()
    before = loops_of(node)
    node._body = node._sizes = node.group = node.read_writes = node.unmet_dependencies = node.other = None
    put_back(node, before)
    assert (node._body, node._sizes, node.group, node.read_writes, node.unmet_dependencies) == tuple("bsgru")
    assert node.other is None and cache.cleared == [node]


def test_groups_of_fsdp_by_either_name() -> None:
    assert fsdp_groups(SimpleNamespace(_fsdp_param_groups=["a", "b"])) == ("a", "b")
    assert fsdp_groups(SimpleNamespace(_fsdp_param_group="a")) == ("a",)
    assert fsdp_groups(SimpleNamespace(_fsdp_param_group=None)) == ()


@pytest.mark.parametrize("takes", [cpu_int_mm_takes_uint8, cpu_scaled_mm_takes_rows])
def test_what_a_product_takes_is_asked_of_real_tensors(takes) -> None:
    """A fake _int_mm refuses uint8, and the answer is kept for good."""
    takes.cache_clear()
    real = takes()
    takes.cache_clear()
    with FakeTensorMode():
        assert takes() == real


def test_a_version_that_is_not_tested_is_said_once(caplog) -> None:
    say_if_untested.cache_clear()
    for version in ("2.13.1+cpu", "2.14.1", "2.14.1"):
        say_if_untested(version)
    [record] = caplog.records
    assert "on 2.14.1 only parts" in record.getMessage()
