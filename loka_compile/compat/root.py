"""The object whose method Dynamo compiles, whatever the method calls it.

Dynamo names modules by how the frame reaches them: `L['self'].mlp` in `def forward(self, x)`, and `L['s'].mlp` in
`def forward(s, x)`. A model's sites must not be named by that.
"""

from __future__ import annotations

import inspect
import re
from types import CodeType
from typing import Any

from torch import fx


def name_root(gm: fx.GraphModule) -> str:
    """Call the root `self` in the module stacks of a Dynamo graph that a backend was just given. Returns what the frame
    calls it; "" where it is no method's, or nothing is compiled now."""
    name = _name_of_root()
    if name not in ("", "self"):
        old = re.compile(rf"^L\['{re.escape(name)}'\]")
        for module in gm.modules():
            for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
                if stack := node.meta.get("nn_module_stack"):
                    renamed = {call: (old.sub("L['self']", path), kind) for call, (path, kind) in stack.items()}
                    node.meta["nn_module_stack"] = renamed
    return name


def _name_of_root() -> str:
    """The local that is the first parameter of a method of its own class, the one that is compiled, or the rest of one
    behind a graph break (InstructionTranslator.current_tx, OutputGraph.root_tx, seen with torch 2.13)."""
    from torch._dynamo.symbolic_convert import tls

    current = getattr(tls, "current_tx", None)
    if current is None:
        return ""
    frame = current.output.root_tx
    for name, value in frame.f_locals.items():
        if any(_is_part_of(frame.f_code, method) for method in _methods_of(value, name)):
            return str(name)
    return ""


def _methods_of(value: Any, first: str) -> list[CodeType]:
    """Those of its class with that name for the object."""
    functions = (each for kind in type(value).__mro__ for each in vars(kind).values() if inspect.isfunction(each))
    codes = (getattr(inspect.unwrap(each), "__code__", None) for each in functions)
    return [code for code in codes if code is not None and code.co_argcount and code.co_varnames[0] == first]


def _is_part_of(code: CodeType, method: CodeType) -> bool:
    """Whether it is the method, or a resumed part of it, which has its file and begins at one of its lines."""
    lines = [line for _, _, line in method.co_lines() if line is not None]
    return code.co_filename == method.co_filename and min(lines) <= code.co_firstlineno <= max(lines)
