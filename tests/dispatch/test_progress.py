"""Progress: one line on a terminal after a while, gone in the end; nothing elsewhere."""

from __future__ import annotations

import io

import pytest

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


@pytest.mark.parametrize("stream", [io.StringIO()])
def test_no_terminal_no_line(stream):
    clock = Clock()
    with progress(stream, clock):
        clock.now = 9.0
        say("timing")
    assert stream.getvalue() == ""


def test_an_error_clears_the_line_too():
    stream, clock = Terminal(), Clock()
    with pytest.raises(ValueError, match="lost"), progress(stream, clock):
        clock.now = 9.0
        say("timing")
        raise ValueError("lost")
    assert stream.getvalue().endswith(f"timing (9 s){CLEAR}")
