"""The GEMMs of an ATen graph (inference, or joint forward and backward) as sites.

AOTAutograd gives a GEMM of the backward the sequence number (`seq_nr`) of the forward GEMM it is derived from. So a
linear is three sites with one name: `mlp.0#0:output`, `:grad_input` and `:grad_weight`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, cast

import sympy
import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph.beside import sum_beside
from loka_compile.graph.choices import choices
from loka_compile.graph.epilogue import epilogue_of
from loka_compile.graph.nodes import is_backward, read_by_products_only, root, unflip
from loka_compile.spec.site import Operand, Role, Site

aten = torch.ops.aten

GEMMS: dict[Any, str] = {
    aten.mm.default: "mm",
    aten.addmm.default: "addmm",
    aten.bmm.default: "bmm",
    aten.baddbmm.default: "baddbmm",
}
"""AOTAutograd has turned linear, matmul and einsum into one of these."""

_NONNEGATIVE = {
    aten.relu.default,
    aten.sigmoid.default,
    aten.abs.default,
    aten.exp.default,
    aten.pow.Tensor_Scalar,
    aten._softmax.default,
    aten.hardsigmoid.default,
}
"""Operators without negative results. An even power, and a clamp from 0, count too (see _nonnegative)."""

SITE_META = "loka_site"
"""The key in a node's meta under which `annotate` leaves its Site. The partitioner's copies of the node keep it."""


@dataclass(frozen=True)
class Gemm:
    """A site with its node: out = alpha * (lhs @ rhs) + beta * bias; without a bias alpha and beta are 1."""

    site: Site
    node: fx.Node
    lhs: fx.Node
    rhs: fx.Node
    bias: fx.Node | None = None
    alpha: float = 1.0
    beta: float = 1.0


def annotate(graph: fx.Graph) -> list[Gemm]:
    """Name every GEMM of an inference or joint graph, in order, and leave its Site in the node's meta."""
    gemms = _with_choices(graph, _with_epilogues(list(_name(graph))))
    for gemm in gemms:
        gemm.node.meta[SITE_META] = gemm.site
    return gemms


def _with_choices(graph: fx.Graph, gemms: list[Gemm]) -> list[Gemm]:
    """The GEMMs; those that decide a choice with the name of the operator that chooses."""
    found = choices(graph, [gemm.node for gemm in gemms])
    decides = {node: name for node, name in found.items() if not is_backward(node)}
    return [
        replace(gemm, site=replace(gemm.site, decides=decides[gemm.node])) if gemm.node in decides else gemm
        for gemm in gemms
    ]


def _with_epilogues(gemms: list[Gemm]) -> list[Gemm]:
    """The GEMMs with what follows them, and with the GEMM in whose epilogue their left operand could be made."""
    found = {gemm.site.key: epilogue_of(gemm.node) for gemm in gemms if gemm.site.op in ("mm", "addmm")}
    made_by = {root(epilogue.end): key for key, epilogue in found.items()}
    is_left = lambda node, value: node.target in GEMMS and operands(node)[0] is value  # noqa: E731

    def with_epilogue(gemm: Gemm) -> Gemm:
        site, tensor = gemm.site, root(gemm.lhs)
        if site.key in found:
            site = replace(site, epilogue=found[site.key].kind, kept=found[site.key].kept)
            if site.role == "grad_weight" and not site.epilogue and sum_beside(gemm.node, from_memory=True) is not None:
                site = replace(site, epilogue="sum")
        if tensor in made_by and not site.lhs.flipped and compat.guard_free(_columns(tensor) == _columns(gemm.lhs)):
            alone = read_by_products_only(tensor, is_left)
            site = replace(site, lhs=replace(site.lhs, made_by=made_by[tensor], only_products=alone))
        return replace(gemm, site=site)

    return [with_epilogue(gemm) for gemm in gemms]


def _columns(node: fx.Node) -> Any:
    return node.meta["val"].shape[-1]


def annotated(graph: fx.Graph) -> list[Gemm]:
    """The GEMMs that `annotate` named, in a graph made from the annotated one, such as a forward or a backward."""
    return [
        Gemm(node.meta[SITE_META], node, *operands(node))
        for node in graph.nodes
        if SITE_META in node.meta and node.target in GEMMS
    ]


def in_place_of_gemms(graph: fx.Graph, op: Any) -> list[fx.Node]:
    """Nodes of this op that replaced a GEMM. Those that the model itself calls have no site."""
    return [node for node in graph.find_nodes(op="call_function", target=op) if SITE_META in node.meta]


def operands(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None, float, float]:
    """(lhs, rhs, bias, alpha, beta) of a GEMM node."""
    given: tuple[Any, ...] = node.args
    if GEMMS[node.target] in ("mm", "bmm"):
        return given[0], given[1], None, 1.0, 1.0
    alpha, beta = (cast(float, node.kwargs.get(name, 1.0)) for name in ("alpha", "beta"))
    return given[1], given[2], given[0], alpha, beta


def with_bias(out: torch.Tensor, bias: torch.Tensor | None, alpha: float, beta: float) -> torch.Tensor:
    """alpha * out + beta * bias as addmm has it: with beta = 0 what is in the bias, NaN included, does not count."""
    scaled = out if alpha == 1 else alpha * out
    if bias is None or beta == 0:
        return scaled
    return scaled + (bias if beta == 1 else beta * bias)


def module_name(node: fx.Node) -> str:
    """The path of the innermost module the node ran in; for a backward's node, its forward ran in. The root module is
    `self`."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    path = next(reversed(stack.values()))[0] if stack else "L['self']"
    return _plain(path)


def module_names(node: fx.Node) -> list[tuple[str, str, str]]:
    """The modules a Dynamo node ran in, outermost first: (which call of the module, its path, its class's name)."""
    stack = node.meta.get("nn_module_stack") or {}
    return [(call, _plain(path), getattr(kind, "__name__", str(kind))) for call, (path, kind) in stack.items()]


def _plain(path: str) -> str:
    """`L['self']._modules['mlp'].layers['0']` -> `mlp.layers.0`.

    The root is `self`, or `fn` if torch.compile was given one of torch's own modules. Any other root stays in front.
    """
    base, _, rest = re.sub(r"^[LG]\['(\w+)'\]", r"\1", path).partition(".")
    rest = re.sub(r"_modules\[", "[", rest)
    rest = re.sub(r"\.?\[\s*['\"]?([^'\"\]]+)['\"]?\s*\]", r".\1", rest).strip(".")
    return (rest or "self") if base in ("self", "fn") else ".".join(filter(None, (base, rest)))


def _name(graph: fx.Graph) -> Iterator[Gemm]:
    """Each GEMM of a graph with its key: module path, ordinal, role. A key that is taken gets `.1`, `.2`, ..."""
    frozen = unchanged_parameters(graph)
    ordinals: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    forward: dict[Any, tuple[fx.Node, str]] = {}  # sequence number -> forward GEMM, its name
    for node in graph.nodes:
        if node.target not in GEMMS:
            continue
        lhs, rhs, bias, alpha, beta = operands(node)
        origin = forward.get(node.meta.get("seq_nr")) if is_backward(node) else None
        forward_role: tuple[Role, Any] = ("output", "")
        role, gradient = _role(lhs, rhs, origin[0]) if origin else forward_role
        if origin:
            name = origin[1]
        else:  # a forward GEMM, or one that only the backward has (a custom autograd function's)
            fqn = module_name(node) + ("#backward" if is_backward(node) else "")
            name = f"{fqn}#{ordinals[fqn]}"
            ordinals[fqn] += 1
            if not is_backward(node) and node.meta.get("seq_nr", -1) >= 0:
                forward[node.meta["seq_nr"]] = node, name
        key = f"{name}:{role}"
        taken[key] += 1
        if taken[key] > 1:
            key += f".{taken[key] - 1}"
        site = _site(key, node, lhs, rhs, role, gradient, static_rhs=unflip(rhs)[0] in frozen)
        yield Gemm(site, node, lhs, rhs, bias, alpha, beta)


def _role(lhs: fx.Node, rhs: fx.Node, forward: fx.Node) -> tuple[Role, Any]:
    """(role, gradient's side): grad_input = gradient @ rhsᵀ, grad_weight = lhsᵀ @ gradient, or written transposed."""
    forward_lhs, forward_rhs, *_ = operands(forward)
    lhs_root, rhs_root = root(lhs), root(rhs)
    known = {root(forward_lhs), root(forward_rhs)}
    gradient = "lhs" if rhs_root in known else "rhs"
    other = rhs_root if gradient == "lhs" else lhs_root
    if root(forward_lhs) is root(forward_rhs):  # x @ xᵀ: both operands are x, so the gradient's side decides
        return ("grad_input", "lhs") if gradient == "lhs" else ("grad_weight", "rhs")
    return ("grad_input" if other is root(forward_rhs) else "grad_weight"), gradient


def _site(key: str, node: fx.Node, lhs: fx.Node, rhs: fx.Node, role: Role, gradient: Any, static_rhs: bool) -> Site:
    a, b = lhs.meta["val"], rhs.meta["val"]
    batch = a.shape[0] if a.dim() == 3 else 1
    return Site(
        key=key,
        op=GEMMS[node.target],
        role=role,
        batch=size(batch),
        M=size(a.shape[-2]),
        N=size(b.shape[-1]),
        K=size(a.shape[-1]),
        dtype=a.dtype,
        fqn=module_name(node),
        source=source_line(node),
        static_rhs=static_rhs,
        gradient=gradient,
        lhs=_operand(lhs),
        rhs=_operand(rhs),
    )


def _operand(node: fx.Node) -> Operand:
    base, flipped = unflip(node)
    source = root(node)
    producer = source.target.__name__ if source.op == "call_function" else source.op
    return Operand(f"{module_name(base)}:{base.name}", producer, flipped, _nonnegative(source))


def _nonnegative(node: fx.Node) -> bool:
    """Whether the node's values are never negative."""
    bound = node.args[1] if len(node.args) > 1 else None
    if node.target is aten.pow.Tensor_Scalar:
        return isinstance(bound, int | float) and bound % 2 == 0
    if node.target is aten.clamp_max.default:
        return isinstance(bound, int | float) and bound >= 0 and _nonnegative(node.all_input_nodes[0])
    if node.target in (aten.clamp.default, aten.clamp_min.default, aten.hardtanh.default):
        low = bound if len(node.args) > 1 else node.kwargs.get("min")
        return isinstance(low, int | float) and low >= 0
    return node.target in _NONNEGATIVE


def size(value: Any) -> sympy.Expr:
    """A size of a fake tensor as a sympy expression."""
    return value.node.expr if isinstance(value, torch.SymInt) else sympy.Integer(int(value))


def source_line(node: fx.Node) -> str:
    """`model.py:42`: the innermost line of the model's own code, not torch's, that made the node; "" if unknown."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [(file, line) for file, line in frames if "/torch/" not in file]
    file, line = (own or frames or [("", "")])[-1]
    return f"{PurePath(file).name}:{line}" if file else ""


def unchanged_parameters(graph: fx.Graph) -> set[fx.Node]:
    """Parameters and buffers that an inference graph reads and never writes; empty for a joint graph."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    if any(is_backward(node) for node in graph.nodes):
        return set()
    written = {root(node.args[0]) for node in graph.nodes if node.target is aten.copy_.default}
    static = compat.static_inputs()
    return {node for index, node in enumerate(placeholders) if index in static} - written
