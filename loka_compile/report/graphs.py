"""The graphs of one compilation, before and after, as columns of plain data; and which pass made a node, from what.

A node that a pass adds comes from the nodes that the same pass removed: those of its GEMM, else those of its line of
the model's code, else those of its module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph.epilogue import is_backward
from loka_compile.graph.sites import SITE_META, module_name, module_names, source_line
from loka_compile.report.texts import Texts

_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "bool": "b8"}
_SHORT |= {"float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2", "complex": "c"}
_OPERATOR = type(torch.ops.aten.relu.default)
_COLUMNS = ("target", "module", "type", "bytes", "line", "site", "phase", "made", "inputs", "origins")


@dataclass
class Watched:
    """What was seen while a record was rebuilt (records.Look). before: the graph as it came to the first pass; written:
    as Dynamo read it, None where no pass changed that. after: by `inference`, `forward` or `backward`; made, origins:
    likewise, by the names of its nodes, which pass added one and which nodes of `before` it comes from."""

    texts: Texts
    before: dict[str, Any] | None = None
    written: dict[str, Any] | None = None
    after: dict[str, fx.Graph] = field(default_factory=dict)
    made: dict[str, dict[str, str]] = field(default_factory=dict)
    origins: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    _alive: dict[str, fx.Node] = field(default_factory=dict)
    _where: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    def look(self, kind: str, pass_name: str, graph: fx.Graph) -> None:
        nodes = {node.name: node for node in graph.nodes}
        if self.before is None:
            self.before = snapshot([("", graph)], self.texts)
            self.made[kind], self.origins[kind] = {}, {name: (name,) for name in nodes}
        elif not pass_name and kind not in self.made:  # partitioned: nodes keep their names
            self.made[kind], self.origins[kind] = dict(self.made["joint"]), dict(self.origins["joint"])
        if pass_name:
            near = self._gone(nodes, self.origins[kind])
            for name in (name for name in nodes if name not in self._alive):
                self.made[kind][name] = pass_name
                found = (
                    near[place, where] for place, where in enumerate(_where(nodes[name])) if (place, where) in near
                )
                self.origins[kind][name] = tuple(next(found, ()))
        else:
            self._where = {}
        self._alive = nodes
        self._where |= {name: _where(node) for name, node in nodes.items() if name not in self._where}
        if kind != "joint":
            self.after[kind] = graph

    def _gone(
        self, nodes: Mapping[str, fx.Node], origins: Mapping[str, tuple[str, ...]]
    ) -> dict[tuple[int, str], dict[str, None]]:
        """What the nodes came from that are there no more, by where they were: which part of `_where`, and that."""
        near: dict[tuple[int, str], dict[str, None]] = {}
        for name in (name for name in self._alive if name not in nodes):
            for key in ((place, where) for place, where in enumerate(self._where[name]) if where):
                near.setdefault(key, {}).update(dict.fromkeys(origins.get(name, ())))
        return {key: found for key, found in near.items() if found}

    def result(self) -> list[dict[str, Any]]:
        """The snapshots, the earliest first."""
        after = snapshot([(kind, graph) for kind, graph in self.after.items()], self.texts, self.made, self.origins)
        if self.before is not None:
            self._name_sites(self.before, after)
        named = [("as written", self.written), ("before", self.before), ("after", after)]
        return [{"name": name, **each} for name, each in named if each is not None]

    def _name_sites(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """What was made of the nodes of one GEMM belongs to its site."""
        none, strings = self.texts(""), self.texts.all
        site_of = dict(zip(before["names"], before["site"], strict=True))
        for place, origins in enumerate(after["origins"]):
            if after["site"][place] == none and after["made"][place] != none:
                found = {site_of.get(strings[each], none) for each in origins} - {none}
                after["site"][place] = found.pop() if len(found) == 1 else none


def _where(node: fx.Node) -> tuple[str, str, str]:
    """The GEMM's key, the line of code with its module, the module."""
    site = node.meta[SITE_META].key if SITE_META in node.meta else ""
    module, line = module_name(node), source_line(node)
    return site, f"{module} {line}" if line else "", module


def snapshot(
    graphs: Iterable[tuple[str, fx.Graph]],
    texts: Texts,
    made: Mapping[str, Mapping[str, str]] | None = None,
    origins: Mapping[str, Mapping[str, tuple[str, ...]]] | None = None,
) -> dict[str, Any]:
    """Columns, one value a node; texts by number. Of several graphs (forward and backward) one after the other.

    graphs: by kind. made, origins: as in Watched.
    """
    names: list[str] = []
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    classes: dict[str, str] = {}
    for kind, graph in graphs:
        made_by, comes_from = (made or {}).get(kind, {}), (origins or {}).get(kind, {})
        start = {node: len(names) + place for place, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            value = node.meta.get("val", node.meta.get("example_value"))
            phase = kind if kind in ("forward", "backward") else "backward" if is_backward(node) else ""
            line, code = _line(node)
            row: Mapping[str, Any] = {
                "target": texts(_target(node)),
                "module": texts(_module(node)),
                "type": texts(_type(value)),
                "bytes": _bytes(value) if node.op not in ("placeholder", "output") else 0,
                "line": texts(f"{line}\t{code}" if line else ""),
                "site": texts(node.meta[SITE_META].key if SITE_META in node.meta else ""),
                "phase": texts(phase),
                "made": texts(made_by.get(node.name, "")),
                "inputs": [start[each] for each in node.all_input_nodes],
                "origins": texts.of(comes_from.get(node.name, ())),
            }
            for name, column in columns.items():
                column.append(row[name])
            classes |= {path: kind_of for _, path, kind_of in module_names(node) if path not in classes}
            names.append(node.name)
    plain = {path: name.rpartition(".")[2] for path, name in classes.items()}
    return {"names": names, **columns, "kernels": [[] for _ in names], "classes": plain}


def _target(node: fx.Node) -> str:
    if node.op == "call_function":
        name = str(node.target) if isinstance(node.target, _OPERATOR) else _plain_name(node.target)
        return name.removesuffix(".default")
    return f"{node.op} {node.target}" if node.op in ("call_method", "call_module", "get_attr") else node.op


def _plain_name(target: Any) -> str:
    return getattr(target, "__name__", None) or str(target)


def _module(node: fx.Node) -> str:
    """The path of the module; inputs and outputs belong to none."""
    return "" if node.op in ("placeholder", "output", "get_attr") else module_name(node)


def _line(node: fx.Node) -> tuple[str, str]:
    """`models/wukong.py:112 in forward`, and the code of that line: the innermost that is not torch's."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in (.+)\n\s*(.*)', node.meta.get("stack_trace") or "")
    own = [each for each in frames if "/torch/" not in each[0]] or frames
    if not own:
        return "", ""
    file, line, function, code = own[-1]
    return f"{'/'.join(PurePath(file).parts[-2:])}:{line} in {function.strip()}", code.strip()[:200]


def _type(value: Any) -> str:
    """`bf16[512, 64]`; of several values, all of them."""
    if isinstance(value, torch.Tensor):
        return f"{short(value.dtype)}[{', '.join(str(size) for size in value.shape)}]"
    if isinstance(value, list | tuple):
        return ", ".join(_type(each) for each in value)
    return type(value).__name__ if value is not None else ""


def short(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name in _SHORT:
        return _SHORT[name]
    found = re.fullmatch(r"([a-z]+)(\d+)", name)
    return f"{_SHORT.get(found[1], found[1])}{found[2]}" if found else name


def _bytes(value: Any) -> int:
    """Of what a node makes, with the sizes at hand; 0 where a size depends on data."""
    if isinstance(value, list | tuple):
        return sum(map(_bytes, value))
    if not isinstance(value, torch.Tensor) or not all(map(compat.has_value, value.shape)):
        return 0
    return math.prod(map(compat.concrete, value.shape)) * value.element_size()
