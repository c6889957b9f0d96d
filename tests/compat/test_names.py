"""Every private name of torch that loka uses is there: a torch that moved one fails here, with the name."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from loka_compile.compat import names

ROOT = Path(__file__).parents[2]
PRIVATE = ("loka_compile/compat", "loka_compile/preview/torch_patches.py", "loka_compile/preview/torch_calls.py")
"""Where private names may stand (tests/test_layers.py)."""
OTHERS = {"_fields", "_getframe", "_replace", "_active", "_pack_args"}
"""Of Python and of triton."""
MOVED = {"_fsdp_param_groups", "_fsdp_param_group"}
"""Of which one version has one and others another: loka_compile/compat/moved.py."""


def files() -> list[Path]:
    return [path for each in PRIVATE for path in (sorted((ROOT / each).rglob("*.py")) or [ROOT / each])]


def imported() -> Iterator[tuple[str, str, str]]:
    """(where, module, name) of everything imported from torch."""
    for path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
                yield from ((where, str(node.module), alias.name) for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((where, alias.name, "") for alias in node.names if alias.name.startswith("torch."))


def test_what_is_imported_is_there() -> None:
    gone = []
    for where, module, name in imported():
        try:
            found = importlib.import_module(module)
            if name and not hasattr(found, name):
                importlib.import_module(f"{module}.{name}")
        except ImportError as error:
            gone.append(f"{where}: {error}")
    assert not gone, "\n".join(gone)


def test_what_is_read_on_objects_is_there() -> None:
    assert not names.missing(), "\n".join(names.missing())


def test_a_name_that_is_gone_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"torch._gone": "x", "torch._guards:Gone": "x", "torch.nn:Module": "_call_impl _never"}
    monkeypatch.setattr(names, "NAMES", gone | {"torch._guards:tracing": "context never"})
    monkeypatch.setattr(names, "HEADERS", {"torch/csrc/inductor/cpp_prefix.h": "never"})
    found = names.missing()
    assert [each.partition(" ")[0] for each in found] == [
        "torch._gone",
        "torch._guards:Gone",
        "torch.nn:Module._never",
        "torch._guards:tracing.never",
        "torch/csrc/inductor/cpp_prefix.h:",
    ]


def private_attributes(path: Path) -> set[str]:
    """`x._name`, and `getattr(x, "_name")`, but for names of our own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used, own = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            ours = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "anew")
            (own if ours and isinstance(node.ctx, ast.Store) else used).add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            named = node.args[1]
            if node.func.id in ("getattr", "hasattr") and isinstance(named, ast.Constant):
                used.add(str(named.value))
    return {name for name in used - own if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_the_table_has_every_private_name(path: Path) -> None:
    modules = {part for _, module, name in imported() for part in [*module.split("."), name]}
    known = {name for each in names.NAMES.values() for name in each.split()} | modules | OTHERS | MOVED
    known |= {part for owner in names.NAMES for part in owner.replace(":", ".").split(".")}
    assert private_attributes(path) <= known, "write them down in loka_compile/compat/names.py"
