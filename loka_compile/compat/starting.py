"""Inductor's own start, ahead of time: which vector instructions g++ can write code for.

Inductor compiles a program for each set of instructions and loads it in a process of its own, one after another, when
it first writes C++ (torch._inductor.cpu_vec_isa, seen with torch 2.13): three times two seconds on a CPU with AVX-512,
in every process with empty caches. Here the richest set alone is asked for: where g++ can write AVX-512 with VNNI, it
can write AVX-512 and AVX2. That is done in the background, while a model's first calls are measured, unless Inductor is
told to do one thing at a time.
"""

from __future__ import annotations

import contextlib
import functools
import threading


def start_compiler() -> None:
    """Ask, once a process; in the background where Inductor may do two things at once."""
    from torch._inductor.async_compile import get_compile_threads

    thread, _ = _asking()
    if get_compile_threads() > 1 and thread.ident is None:
        thread.start()


def compiler_started() -> None:
    """Wait for the answer, or find it now, if somebody asked: two askers at once would both do the work."""
    if _asking.cache_info().currsize:
        _asked()


@functools.cache
def _asked() -> None:
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list

    thread, answer = _asking()
    if thread.ident is None:
        thread.start()
    thread.join()
    if answer:
        with config.patch({"cpp.vec_isa_ok": True}):
            valid_vec_isa_list()  # PyTorch keeps it


@functools.cache
def _asking() -> tuple[threading.Thread, list[str]]:
    """The thread that asks, to be started, and the set of instructions once it is known. Nothing is asked of other
    processors, which Inductor knows without compiling, and nothing that was answered or set already."""
    import platform

    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import supported_vec_isa_list, valid_vec_isa_list, x86_isa_checker

    answer: list[str] = []

    def ask() -> None:
        known = valid_vec_isa_list.cache_info().currsize or config.cpp.vec_isa_ok is not None
        if known or platform.machine() not in ("x86_64", "AMD64"):
            return
        has = x86_isa_checker()
        richest = next((isa for isa in supported_vec_isa_list if all(flag in has for flag in str(isa).split())), None)
        with contextlib.suppress(Exception):  # Inductor asks again
            if richest is not None and bool(richest):
                answer.append(str(richest))

    return threading.Thread(target=ask, daemon=True, name="loka-start"), answer
