"""C++ kernels of a graph in few files.

Inductor has a file of its own, and a run of g++, for each kernel. Of the 0.6 s that such a run takes 0.5 are headers,
Python's bindings and linking, whatever the kernel (torch 2.13 with its headers precompiled): eight kernels of a DCNv2
took 4.7 s, in one file 1.4. So the kernels of a module are compiled together, in as many files as are compiled at once.
A kernel is found again by its code, its flags and its arguments, in whatever file it came to be.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loka_compile.compat.instead import instead

_KERNEL = re.compile(
    r'\s*#include <torch/csrc/inductor/cpp_prefix\.h>\s*\nextern "C"\s+void\s+kernel\((?P<arguments>[^()]*)\)\s*'
    r"(?P<body>\{\n(?:(?:[ \t#][^\n]*)?\n)*\})\s*"
)
"""One function and nothing beside it: between its braces each line is indented, empty, or for the preprocessor."""

_HEADERS = "".join(
    f"{line}\n"
    for line in (
        "#include <torch/csrc/inductor/cpp_prefix.h>",
        "#define PY_SSIZE_T_CLEAN",
        "#include <Python.h>",
        "#include <sstream>",
        "#include <cstdlib>",
        "#include <cerrno>",
    )
)
"""Of the kernels and of their bindings, which stand in a namespace each and must not include them anew there."""


@dataclass(frozen=True)
class Kernel:
    """A request to `async_compile.cpp_pybinding` in a generated module: code, and the types of its arguments.

    name: of its function, which tells it from every other kernel and way to compile it.
    """

    source: str
    types: tuple[str, ...]
    name: str

    @classmethod
    def of(cls, types: Sequence[str], source: str, command: Callable[[], str]) -> Kernel | None:
        """None of code of another form. command: compiles it."""
        if _KERNEL.fullmatch(source) is None:
            return None
        digest = hashlib.sha256(repr((source, list(types), command())).encode()).hexdigest()
        return cls(source, tuple(types), f"kernel_{digest[:32]}")

    @property
    def code(self) -> str:
        found, inductor = _KERNEL.fullmatch(self.source), self.inductor
        assert found is not None
        read = (f"parse_arg<{each.replace('const ', '')}>(args, {n})" for n, each in enumerate(self.types))
        bindings = inductor.suffix_template.format(
            arg_len=len(self.types),
            call_entry_func=f"{self.name}({', '.join(read)}); Py_RETURN_NONE;",
            entry_func=self.name,
            extra_parse_arg="",
        )
        function = f'extern "C" void {self.name}({found["arguments"]})\n{found["body"]}'
        return f"{function}\nnamespace of_{self.name} {{\n{bindings}\n}}\n"

    @functools.cached_property
    def inductor(self) -> Any:
        """Inductor's class that compiles and loads kernels, for one whose function is called like this one's."""
        from torch._inductor.codecache import CppPythonBindingsCodeCache

        return type("Kernel", (CppPythonBindingsCodeCache,), {"entry_function": self.name})

    def load(self, path: str) -> Callable[..., Any]:
        return getattr(self.inductor._load_library(path, self.name), self.name)

    @property
    def link(self) -> Path:
        """Leads to the compiled file that has the kernel, if one has."""
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        return Path(cache_dir(), "loka", self.name[-2:], f"{self.name}.so")

    def is_in(self, path: str) -> None:
        with contextlib.suppress(OSError):  # another process was faster; or it is compiled again next time
            self.link.parent.mkdir(parents=True, exist_ok=True)
            self.link.unlink(missing_ok=True)
            self.link.symlink_to(path)


@contextlib.contextmanager
def in_few_files() -> Iterator[None]:
    """Modules that Inductor loads meanwhile have their kernels compiled together.

    A module calls `cpp_pybinding` for each kernel, and then `wait` with all its names, which replaces what is not ready
    yet (AsyncCompile, seen with torch 2.13).
    """
    from torch._inductor.async_compile import AsyncCompile, get_compile_threads
    from torch._inductor.codecache import CppPythonBindingsCodeCache, LambdaFuture

    if "{entry_func}" not in getattr(CppPythonBindingsCodeCache, "suffix_template", "") or os.name == "nt":
        yield  # another version: one by one
        return
    asked, wait, command = AsyncCompile.cpp_pybinding, AsyncCompile.wait, functools.cache(_command)

    def cpp_pybinding(self: Any, types: list[str], source: str) -> Any:
        return Kernel.of(types, source, command) or asked(self, types, source)

    def wait_for_all(self: Any, scope: dict[str, Any]) -> None:
        kernels = {name: value for name, value in scope.items() if isinstance(value, Kernel)}
        ready = _compiled(list(dict.fromkeys(kernels.values())), self.submit, get_compile_threads())
        for name, kernel in kernels.items():
            scope[name] = LambdaFuture(ready[kernel]) if get_compile_threads() > 1 else ready[kernel]()
        wait(self, scope)

    with instead(AsyncCompile, "cpp_pybinding", cpp_pybinding), instead(AsyncCompile, "wait", wait_for_all):
        yield


@contextlib.contextmanager
def compiling_side_by_side() -> Iterator[None]:
    """Graphs compiled meanwhile are ready to be called only afterwards: their C++ is compiled in Inductor's pool while
    the next one is traced (AsyncCompile.wait, which a generated module calls last; seen with torch 2.13)."""
    from torch._inductor.async_compile import AsyncCompile

    original, waiting = AsyncCompile.wait, []

    def wait(self: Any, scope: dict[str, Any]) -> None:
        waiting.append((self, scope))

    try:
        with instead(AsyncCompile, "wait", wait):
            yield
    finally:
        for compiler, scope in waiting:
            original(compiler, scope)


def _compiled(kernels: Sequence[Kernel], submit: Any, threads: int) -> dict[Kernel, Callable[[], Any]]:
    """A loader for each, to be called once it is compiled."""
    ready: dict[Kernel, Callable[[], Any]] = {}
    new = [kernel for kernel in kernels if not kernel.link.exists()]
    for kernel in kernels:
        ready[kernel] = functools.partial(kernel.load, str(kernel.link))
    new.sort(key=lambda kernel: (len(kernel.source), kernel.name))
    for file in filter(None, (new[i :: max(1, threads)] for i in range(max(1, threads)))):
        ready |= _file(file, submit if threads > 1 else None)
    return ready


def _file(kernels: Sequence[Kernel], submit: Any) -> dict[Kernel, Callable[[], Any]]:
    """Compiles these in one file."""
    code = _HEADERS + "".join(kernel.code for kernel in kernels)
    first = kernels[0].inductor.load_async(code, submit_fn=submit)

    @functools.cache
    def path() -> str:
        from torch._inductor.exc import CppCompileError

        try:
            found = str(first().__file__)
        except CppCompileError:
            return ""
        for kernel in kernels:
            kernel.is_in(found)
        return found

    def load(kernel: Kernel) -> Callable[..., Any]:
        if path():
            return kernel.load(path())
        one_by_one = kernel.inductor.__base__  # as Inductor does it, and with its error if that fails too
        return one_by_one.load_pybinding(kernel.types, kernel.source)

    return {kernel: functools.partial(load, kernel) for kernel in kernels}


def _command() -> str:
    """The command line that compiles a kernel here, with names in place of files (CppCodeCache.load_async)."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache
    from torch._inductor.cpp_builder import CppBuilder, CppTorchDeviceOptions
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    flags = CppPythonBindingsCodeCache.cpp_compile_command_flags
    options = CppTorchDeviceOptions(vec_isa=pick_vec_isa(), device_type="cpu", **flags)
    return str(CppBuilder(name="o", sources="i", BuildOption=options).get_command_line())
