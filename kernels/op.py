"""An op is declared once, as a frozen dataclass whose fields are the op's arguments, in order.

    class Quantized(NamedTuple, Generic[T]):
        q: T
        scale: T

    @dataclass(frozen=True)
    class Quantize(Op[T, Quantized[T]]):
        name: ClassVar[str] = "quantize"
        values: ClassVar[Any] = Quantized
        x: T
        dtype: torch.dtype
        scaling: str
        axis: int

    quantize = declare(Quantize, reference)

T stands for a tensor: a Tensor where the op runs, an fx.Node where a pass reads a graph. The declaration gives the
schema of loka::quantize, its fake, and the names by which a pass reads and writes a call: `Quantize.of(node).scaling`,
`put(node, replace(Quantize.of(node), axis=-2))` (graph/splice.py). A field may be such a dataclass itself; then the op
takes its fields in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from operator import getitem
from typing import Any, ClassVar, Generic, Literal, Self, cast

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves
from typing_extensions import TypeVar  # typing's takes no default before Python 3.13

from loka_compile.kernels.op_fields import T, arguments, filled, flat, placed, schema

LIBRARY = torch.library.Library("loka", "FRAGMENT")
BODIES: dict[str, Callable[..., Any]] = {}
"""An op's qualified name -> what it runs on real tensors."""

Values = TypeVar("Values", default=Any)
_Form = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]
"""A tensor's sizes, strides, dtype and device."""


@dataclass(frozen=True)
class Op(Generic[T, Values]):
    """A call of an op: its arguments by name. values: the NamedTuple of its results; None if it returns one tensor."""

    name: ClassVar[str]
    values: ClassVar[Any] = None

    def __call__(self) -> Values:
        """Run the op; its arguments are tensors. Not in what users call: Dynamo of torch 2.12 asks an object that it
        traces the call of for its hash, before the object has its fields. What `declare` returns is for that."""
        return self.named(self.target()(*self.args))

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments in the op's order."""
        return tuple(flat(self))

    @classmethod
    def bind(cls, *args: Any, **kwargs: Any) -> Self:
        """The call with these arguments in the op's order. Raises TypeError if they are not the op's."""
        kind = cast(Hashable, cls)
        if not kwargs and len(args) == len(arguments(kind)):
            made: Self = placed(cls, iter(args))
            return made
        names = [field.name for field, _ in arguments(kind)]
        if len(args) > len(names) or not kwargs.keys() <= set(names[len(args) :]):
            raise TypeError(f"loka::{cls.name} takes {', '.join(names)}, got {len(args)} and {list(kwargs)}")
        return filled(cls, dict(zip(names, args, strict=False)) | kwargs)

    @classmethod
    def named(cls, result: Any) -> Any:
        """The op's results as its NamedTuple; one tensor stays as it is."""
        return result if cls.values is None else cls.values(*result)

    # ------------------------------------------------------------ in a graph

    @classmethod
    def target(cls) -> Any:
        """The operator that a node of this op calls."""
        return getattr(torch.ops.loka, cls.name).default

    @classmethod
    def calls(cls, graph: fx.Graph) -> list[fx.Node]:
        """The nodes of a graph that call the op."""
        return list(graph.find_nodes(op="call_function", target=cls.target()))

    @classmethod
    def matches(cls, node: Any) -> bool:
        """Whether this is a node that calls the op."""
        return isinstance(node, fx.Node) and node.target in (cls.target(), cls.target().overloadpacket)

    @classmethod
    def of(cls, node: fx.Node) -> Self:
        """The call that a node makes. Raises TypeError if the node does not call this op."""
        if not cls.matches(node):
            raise TypeError(f"expected a call of loka::{cls.name}, got {node.format_node()}")
        return cls.bind(*node.args, **node.kwargs)

    @classmethod
    def made(cls, node: Any, value: str = "") -> fx.Node | None:
        """The call that this node is a result of, or None. value: only the result of this name counts."""
        if not isinstance(node, fx.Node) or node.target is not getitem:
            return None
        call, place = node.args
        wanted = not value or place == cls.place(value)
        return call if wanted and isinstance(call, fx.Node) and cls.matches(call) else None

    @classmethod
    def place(cls, value: str) -> int:
        """The place of a result among the op's results. Raises ValueError for an unknown name."""
        if value not in cls.values._fields:
            raise ValueError(f"loka::{cls.name} returns {', '.join(cls.values._fields)}; got {value!r}")
        return int(cls.values._fields.index(value))

    @classmethod
    def taken(cls, call: fx.Node, value: str) -> list[fx.Node]:
        """The nodes that read this result of a call."""
        return [user for user in call.users if cls.made(user, value) is call]


def declare(
    kind: type[Op[Tensor, Any]],
    reference: Callable[[Any], Any],
    run: Callable[[Any], Any] | None = None,
    gradient: Literal["refused", "own", "never"] = "refused",
) -> Callable[..., Any]:
    """Register an op with torch.library.

    reference: what the op computes, in ordinary torch functions; it also runs on fake tensors.
    run: what the op does with real tensors, if that is something else; its results must have the reference's shapes,
        strides and dtypes.
    gradient: "refused": a backward through the op raises RuntimeError. "own": the caller registers it. "never": the op
        stands in graphs without gradients alone, and a call that asks for one raises; so nothing of autograd is in the
        way of a call, which takes 10 us less (a third of a product of one row, AMD Zen 5).
    """

    def of(function: Callable[[Any], Any]) -> Callable[..., Any]:
        return lambda *args: _apart(function(kind.bind(*args)), args)

    name = f"{LIBRARY.ns}::{kind.name}"
    refusal = f"{name} has no gradient: call it under torch.no_grad()"
    LIBRARY.define(kind.name + schema(kind), tags=torch.Tag.pt2_compliant_tag)
    BODIES[name] = of(run or reference)
    body = _without_gradient(BODIES[name], refusal) if gradient == "never" else BODIES[name]
    LIBRARY.impl(kind.name, torch.compiler.disable(body), "CompositeExplicitAutograd")
    torch.library.register_fake(name, _remembered(of(reference)), lib=LIBRARY)
    if gradient == "refused":
        torch.library.register_autograd(name, _refusing(refusal), lib=LIBRARY)
    op: Callable[..., Any] = kind.target()
    return op


def _without_gradient(body: Callable[..., Any], refusal: str) -> Callable[..., Any]:
    def op(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in args):
            raise RuntimeError(refusal)
        return body(*args)

    return op


def _refusing(refusal: str) -> Callable[..., Any]:
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(refusal)

    return backward


def _remembered(op: Callable[..., Any]) -> Callable[..., Any]:
    """The op on fake tensors, remembered by its arguments' forms: compiling a model asks about ten times for each call.
    Symbolic sizes are not remembered."""
    known: dict[Any, list[_Form]] = {}

    def fake(*args: Any) -> Any:
        key = tuple(_form(each) if isinstance(each, Tensor) else each for each in args)
        if any(isinstance(each, torch.SymInt) for each in tree_leaves(key)):
            return op(*args)
        if key not in known:
            result = op(*args)
            known[key] = [_form(each) for each in (result if isinstance(result, tuple) else (result,))]
            return result
        made = [torch.empty_strided(*sizes, dtype=dtype, device=device) for *sizes, dtype, device in known[key]]
        return tuple(made) if len(made) > 1 else made[0]

    return fake


def _form(tensor: Tensor) -> _Form:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def dense(reference: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The reference with contiguous results, as kernels write them."""

    def contiguous(call: Any) -> Any:
        result = reference(call)
        return result.contiguous() if isinstance(result, Tensor) else tuple(each.contiguous() for each in result)

    return contiguous


C = TypeVar("C", bound=Op[Tensor, Any])


def contiguous(call: C) -> C:
    """The call with contiguous tensors."""
    return call.bind(*(each.contiguous() if isinstance(each, Tensor) else each for each in call.args))


def _apart(result: Any, args: tuple[Any, ...]) -> Any:
    """The result or results, copied where one is an argument or another result: torch.library forbids such aliases."""
    if isinstance(result, Tensor):
        return result.clone() if any(result is each for each in args) else result
    seen, apart = {id(each) for each in args}, []
    for each in result:
        apart.append(each.clone() if id(each) in seen else each)
        seen.add(id(each))
    return tuple(apart)
