"""What all sites share is said once, and by site only what differs; nothing is lost to whoever asks of one site."""

from __future__ import annotations

from dataclasses import replace

from loka_compile.inspect.details import details, shared_first
from loka_compile.inspect.row import Row

GPU, BATCH, SLOW = "runs on GPUs", "takes two matrices", "0.50x, wanted 1.05x"


def row(key: str, reason: str = "slow", **rejected: str) -> Row:
    refused = tuple((name.replace("_", "/"), why) for name, why in rejected.items())
    bare = Row(key, "output", "", "keep", "", "", "kept", None, None, None, None, None, "", reason)
    return replace(bare, rejected=refused)


def test_what_is_true_of_all_is_said_once_and_what_differs_by_site() -> None:
    rows = [row("a", bf16_triton=GPU, fp16_aten=SLOW), row("b", bf16_triton=f"{GPU}; {BATCH}", fp16_aten="0.9x")]
    assert shared_first(rows, 160) == [
        "  refused at all 2 sites",
        f"      not bf16/triton: {GPU}",
        "  a",
        "      keep: slow",
        f"      not fp16/aten: {SLOW}",
        "  b",
        "      keep: slow",
        "      not fp16/aten: 0.9x",
    ]
    assert details(rows[1:], 160)[2] == f"      not bf16/triton: {GPU}; {BATCH}"  # all of it where one is asked for


def test_what_one_site_of_many_lacks_is_said_once_too() -> None:
    rows = [*(row(key, bf16_triton=GPU) for key in "abcd"), row("e", bf16_triton=BATCH)]
    lines = shared_first(rows, 160)
    assert lines[0] == "  refused at 4 of 5 sites, all but e" and lines.count(f"      not bf16/triton: {GPU}") == 1
    assert lines[-3:] == ["  e", "      keep: slow", f"      not bf16/triton: {BATCH}"]


def test_what_half_of_them_share_stays_with_each() -> None:
    rows = [*(row(key, reason=key, bf16_triton=GPU) for key in "ab"), *(row(key, bf16_triton=BATCH) for key in "cd")]
    assert not any("refused at" in line for line in shared_first(rows, 160))


def test_a_site_of_two_graphs_shares_what_both_say() -> None:
    rows = [row("a", bf16_triton=GPU), row("a", reason="lost", bf16_triton=SLOW), row("b", bf16_triton=GPU)]
    lines = shared_first(rows, 160)
    assert not any("refused at" in line for line in lines) and f"      not bf16/triton: {SLOW}" in lines


def test_one_site_alone_shares_nothing() -> None:
    assert shared_first([row("a", bf16_triton=GPU)], 160) == details([row("a", bf16_triton=GPU)], 160)


def test_reasons_that_go_together_stay_on_a_line() -> None:
    rows = [row(key, bf16_fbgemm="not installed; runs on CUDA", bf16_triton=GPU) for key in "ab"]
    assert shared_first(rows, 160)[1:3] == [
        "      not bf16/fbgemm: not installed; runs on CUDA",
        f"      not bf16/triton: {GPU}",
    ]
