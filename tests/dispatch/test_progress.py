"""Progress: after a while one line on a terminal, gone in the end; elsewhere lines of the log, and a hint."""

from __future__ import annotations

import io
import logging

import pytest

from loka_compile.dispatch.kept_times import cache_dir
from loka_compile.dispatch.progress import CLEAR, progress, say


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_line_is_rewritten_after_a_while_and_goes_in_the_end():
    stream, clock = Terminal(), Clock()
    with progress(stream, clock):
        for now, text in ((4.9, "timing"), (6.0, "compiling"), (6.05, "too soon"), (12.0, "racing")):
            clock.now = now
            with progress(stream, clock):
                say(text)
    assert stream.getvalue() == f"{CLEAR}loka: compiling (6 s){CLEAR}loka: racing (12 s){CLEAR}"
    say("nobody asked")
    assert stream.getvalue().endswith(CLEAR)


def test_what_is_quick_leaves_no_trace():
    stream = Terminal()
    with progress(stream, Clock()):
        say("timing")
    assert stream.getvalue() == ""


def logged(caplog) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "loka"]


def told(caplog, steps, end: float) -> list[tuple[str, str]]:
    stream, clock = io.StringIO(), Clock()
    with caplog.at_level(logging.INFO, "loka"), progress(stream, clock):
        for clock.now, text in steps:
            say(text)
        clock.now = end
    assert stream.getvalue() == ""
    return logged(caplog)


def test_no_terminal_no_line_but_the_log_every_few_seconds(caplog):
    steps = [(1.0, "timing a"), (6.0, "timing b"), (8.0, "timing c"), (11.5, "compiling 3 casts"), (12.0, "racing")]
    assert told(caplog, steps, 14.0) == [
        ("INFO", "loka: timing b (6 s)"),
        ("INFO", "loka: compiling 3 casts (12 s)"),
        ("INFO", "loka: planned and compiled in 14 s: 10 s timing, 2 s racing, 1 s other work"),
    ]


def test_a_plan_that_takes_long_says_once_what_takes_the_time(caplog):
    steps = [(1.0, "timing a"), (15.0, "compiling"), (21.0, "racing"), (40.0, "racing")]
    warned = [text for level, text in told(caplog, steps, 41.0) if level == "WARNING"]
    assert len(warned) == 1 and "21 s so far: 14 s timing, 6 s compiling, 1 s other work" in warned[0]
    assert str(cache_dir()) in warned[0]


def test_what_is_quick_is_not_logged(caplog):
    assert told(caplog, [(1.0, "timing")], 4.0) == []


def test_an_error_clears_the_line_too():
    stream, clock = Terminal(), Clock()
    with pytest.raises(ValueError, match="lost"), progress(stream, clock):
        clock.now = 9.0
        say("timing")
        raise ValueError("lost")
    assert stream.getvalue().endswith(f"timing (9 s){CLEAR}")
