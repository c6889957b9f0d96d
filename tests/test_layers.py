"""Imports point down only, private torch stays in compat/, and `import loka_compile` stays light."""

import ast
import configparser
import subprocess
import sys
import tomllib
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).parents[1]

# Folder of the checkout -> the name it is imported by.
FOLDERS = {
    "examples": "examples",
    "loka_compile": "loka_compile",
    "passes": "loka_compile.passes",
    "kernels": "loka_compile.kernels",
}

# Top to bottom: a module may import its own layer and those below it.
LAYERS = (
    ("examples",),
    ("loka_compile.cli",),
    ("loka_compile",),  # the public API, loka_compile/__init__.py
    ("loka_compile.report",),
    ("loka_compile.preview",),
    ("loka_compile.backend", "loka_compile.compilation", "loka_compile.mods"),
    ("loka_compile.online",),
    ("loka_compile.inspect",),
    ("loka_compile.passes",),
    ("loka_compile.trial",),
    ("loka_compile.dispatch",),
    ("loka_compile.probe",),
    ("loka_compile.machine",),
    ("loka_compile.graph",),
    ("loka_compile.kernels",),
    ("loka_compile.sampling", "loka_compile.spec"),
    ("loka_compile.compat",),
)
DEPTH = {module: depth for depth, layer in enumerate(LAYERS) for module in layer}
PLAIN_DATA = DEPTH["loka_compile.spec"]

# A preview's private names are its own: those it replaces are a table that is tested row by row
# (tests/preview/test_torch_patches.py), those it calls stand beside it.
MAY_BE_PRIVATE = {"loka_compile.compat", "loka_compile.preview.torch_patches", "loka_compile.preview.torch_calls"}

# Named with an underscore, yet these are the kernels everyone calls.
PUBLIC_KERNELS = {"_int_mm", "_scaled_mm"}


def module_name(path: Path, root: Path) -> str:
    folder, *rest = path.relative_to(root).with_suffix("").parts
    return ".".join([FOLDERS[folder], *(rest[:-1] if rest[-1] == "__init__" else rest)])


def depth_of(module: str) -> int | None:
    """The layer of a module: that of its longest known prefix. None if it is not ours or has no layer."""
    while module not in DEPTH:
        module, dot, _ = module.rpartition(".")
        if not dot or module == "loka_compile":  # a module the list above does not know
            return None
    return DEPTH[module]


def imports(tree: ast.AST, module: str, is_package: bool):
    """(node, imported dotted name) of every import, wherever it stands; relative ones made absolute."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                # `from loka_compile import x` means the module x where there is one, else the public API.
                full = f"{base}.{alias.name}"
                yield node, full if base == "torch" or depth_of(full) is not None else base


def at_module_level(tree: ast.Module) -> set[ast.AST]:
    """The nodes that run when the module is imported: not those in functions or under `if TYPE_CHECKING`."""
    found, todo = set(), list(tree.body)
    while todo:
        node = todo.pop()
        found.add(node)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo.extend(ast.iter_child_nodes(node))
    return found


def torch_attributes(tree: ast.AST):
    """(node, dotted name) of every `torch.x`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            yield node, f"torch.{node.attr}"


def is_private_torch(dotted: str) -> bool:
    head, name, *_ = [*dotted.split("."), ""]
    return head == "torch" and name[:1] == "_" != name[1:2] and name not in PUBLIC_KERNELS


def may_be_private(module: str) -> bool:
    return any(f"{module}.".startswith(f"{each}.") for each in MAY_BE_PRIVATE)


def violations(root: Path) -> list[str]:
    """Every import under `root` that breaks the rules, as `file:line: why`."""
    found = []
    for path in sorted(p for folder in FOLDERS for p in (root / folder).rglob("*.py")):
        module, tree = module_name(path, root), ast.parse(path.read_text())
        own = depth_of(module)

        def report(node, why, path=path):
            found.append(f"{path.relative_to(root)}:{getattr(node, 'lineno', 1)}: {why}")

        if own is None:
            report(tree, f"{module} has no layer; give it one in tests/test_layers.py")
            continue
        eager = at_module_level(tree)
        imported = list(imports(tree, module, path.name == "__init__.py"))
        for node, name in [*imported, *torch_attributes(tree)]:
            if is_private_torch(name) and not may_be_private(module):
                report(node, f"private torch API {name}; wrap it in loka_compile/compat/")
        for node, name in imported:
            top = name.partition(".")[0]
            if top in ("passes", "kernels"):
                report(node, f"{name} is importable in a checkout only; import loka_compile.{name}")
            if top not in ("examples", "loka_compile"):
                continue
            its = depth_of(name)
            if its is None:
                report(node, f"{name} has no layer; give it one in tests/test_layers.py")
            elif module == "loka_compile":
                if node in eager and its < PLAIN_DATA:
                    report(node, f"{name} is imported eagerly; import it inside a function")
            elif own == DEPTH["examples"]:
                # `from loka_compile import probe` is the public function, whatever module bears its name.
                public = isinstance(node, ast.ImportFrom) and node.module == "loka_compile"
                public |= name.startswith(
                    "loka_compile.sampling."
                )  # which imports nothing of loka: a library of its own
                if top == "loka_compile" and name != "loka_compile" and not public:
                    report(node, f"examples use the public API only, not {name}")
            elif its < own:
                report(node, f"{module} imports {name}, which is above it")
    return found


def test_imports_point_down():
    found = violations(ROOT)
    assert not found, "\n" + "\n".join(found)


def import_graph(root: Path) -> networkx.DiGraph:
    """Who imports whom: imports in functions and under TYPE_CHECKING count, the public API does not."""
    paths = {module_name(path, root): path for folder in FOLDERS for path in (root / folder).rglob("*.py")}
    graph = networkx.DiGraph()
    for module, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            base = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for name in names:
                full = f"{base}.{name}".strip(".")
                imported = full if full in paths else base
                if imported in paths and imported not in (module, "loka_compile"):
                    graph.add_edge(module, imported)
    return graph


def test_no_modules_import_each_other():
    circles = [sorted(part) for part in networkx.strongly_connected_components(import_graph(ROOT)) if len(part) > 1]
    assert not circles


def is_pass(module: str) -> bool:
    """A file of a stage's folder that is no helper (`_x`) and no list of passes."""
    package, _, name = module.rpartition(".")
    stage = package.removeprefix("loka_compile.passes.")
    return stage != package and name[:1] != "_" and name not in ("adapting", "mods")


def test_a_pass_imports_no_other_pass():
    found = [(a, b) for a, b in import_graph(ROOT).edges if is_pass(a) and is_pass(b)]
    assert not found


def test_a_circle_is_seen_wherever_its_imports_stand(tmp_path):
    codes = {"a": "from loka_compile.graph import b", "b": "def f():\n    import loka_compile.graph.a"}
    for name, code in codes.items():
        path = tmp_path / "loka_compile" / "graph" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    [circle] = (part for part in networkx.strongly_connected_components(import_graph(tmp_path)) if len(part) > 1)
    assert circle == {"loka_compile.graph.a", "loka_compile.graph.b"}


WRONG = {
    "passes/post_grad/lower.py": ["from loka_compile import backend", "from ...cli import x", "import passes.joint"],
    "kernels/norm.py": ["from loka_compile.graph.sites import sites", "import loka_compile"],
    "loka_compile/graph/sites.py": ["def f():\n    from ..probe import Probe", "from .. import explain"],
    "loka_compile/__init__.py": ["from .backend import loka", "if True:\n    import loka_compile.graph"],
    "loka_compile/spec/target.py": ["import torch._inductor.config", "from torch import _dynamo", "torch._C._x()"],
    "loka_compile/stray.py": ["import math"],
    "examples/quickstart.py": ["import loka_compile.probe", "from loka_compile.spec.options import Options"],
}
RIGHT = {
    "passes/post_grad/lower.py": ["from ...graph import sites", "from .. import base", "import torch"],
    "kernels/norm.py": ["from loka_compile.compat import x", "torch._int_mm(a, b)", "torch.__version__"],
    "kernels/providers/aten.py": ["from loka_compile.spec.site import Site", "import torch"],
    "loka_compile/__init__.py": ["from .spec.options import Options", "def f():\n    from .backend import x"],
    "loka_compile/compat/__init__.py": ["import torch._inductor", "from .fakes import is_fake"],
    "loka_compile/compat/fakes.py": ["import torch._inductor", "torch._C._x()"],
    "loka_compile/cli/plan.py": ["import loka_compile", "from loka_compile import explain"],
    "loka_compile/dispatch/providers/aten.py": ["from ..scores import x", "from ...kernels import y"],
    "examples/quickstart.py": ["import loka_compile as loka", "from loka_compile import probe"],
    "examples/audience/a.py": ["from loka_compile.sampling.stratified import stratified_sample"],
}


def cases(table):
    return [pytest.param(file, code, id=f"{file}: {code}") for file, codes in table.items() for code in codes]


def found_in(root: Path, file: str, code: str) -> list[str]:
    path = root / file
    path.parent.mkdir(parents=True)
    path.write_text(code)
    return violations(root)


@pytest.mark.parametrize("file, code", cases(WRONG))
def test_a_wrong_import_is_caught(tmp_path, file, code):
    [why] = found_in(tmp_path, file, code)
    assert why.startswith(file)


@pytest.mark.parametrize("file, code", cases(RIGHT))
def test_a_right_import_passes(tmp_path, file, code):
    assert found_in(tmp_path, file, code) == []


def test_setup_cfg_lists_every_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    inits = [p for folder in FOLDERS if folder != "examples" for p in (ROOT / folder).rglob("__init__.py")]
    assert {module_name(p, ROOT) for p in inits} == set(config["options"]["packages"].split())


def test_mypy_lets_only_triton_functions_go_without_types():
    overrides = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    [loose] = [set(each["module"]) for each in overrides if each.get("disallow_untyped_defs") is False]
    kernels = [path for path in (ROOT / "kernels").rglob("*.py") if "@triton.jit" in path.read_text().split("\n")]
    assert loose == {module_name(path, ROOT) for path in kernels}


def run_fresh(code: str) -> str:
    """What `code` prints in a new interpreter that stands outside the checkout."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light():
    heavy = "[m for m in sys.modules if (m + '.').startswith(('triton.', 'torch._inductor.'))]"
    assert run_fresh(f"import sys, loka_compile; print({heavy})") == "[]"


def test_backend_is_found_by_name_without_import():
    code = "import sys, torch._dynamo as d; print('loka' in d.list_backends(), 'loka_compile' in sys.modules)"
    assert run_fresh(code) == "True False"
