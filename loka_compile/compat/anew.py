"""Compiling a Dynamo graph later than Dynamo made it: when it is called, in a tracing context of its own.

Sizes that are fixed are those of the call. Sizes that are symbols get new symbols, with this call's values for hints
and with the ranges that Dynamo guards; what compiling asks of them is a condition of ours, as Dynamo's guards are made.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from loka_compile.compat.draws import cuda_devices
from loka_compile.compat.fakes import is_fake

Holds = Callable[[Sequence[Any]], bool]
"""Whether code holds for the arguments of a call."""


class Anew:
    """One compilation: `inputs` stand for the arguments, which have real tensors and numbers."""

    def __init__(self, gm: fx.GraphModule, args: Sequence[Any]) -> None:
        from torch._dynamo.source import ConstantSource
        from torch._guards import TracingContext
        from torch._subclasses import FakeTensorMode

        self._olds = _examples(gm.graph)
        self._env = _shape_env_like(self._olds)
        _know_unbacked(self._env, gm.graph)
        self._mode = FakeTensorMode(shape_env=self._env)
        self._sources = [ConstantSource(f"args[{place}]") for place in range(len(args))]
        self._new: dict[Any, Any] = {}
        self.context = TracingContext(self._mode)
        self._meet_symbols(args)
        self.inputs = list(args)
        for place, (old, value, source) in enumerate(zip(self._olds, args, self._sources, strict=True)):
            if isinstance(old, torch.SymInt):
                size = _expr(old).xreplace(self._new)
                self.inputs[place] = self._env.create_symintnode(size, hint=value, source=source)
        self._fakes = [
            self._fake(old, value, source) if isinstance(value, torch.Tensor) else self.inputs[place]
            for place, (old, value, source) in enumerate(zip(self._olds, args, self._sources, strict=True))
        ]

    def holds(self) -> Holds:
        """Guards on the sizes that were added meanwhile, beyond Dynamo's own (ShapeEnv.produce_guards)."""
        from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP

        if not self._new:
            return lambda args: True
        conditions = self._env.produce_guards(self._fakes, self._sources, source_ref=lambda source: source.name)
        code = " and ".join(f"({each})" for each in conditions) or "True"
        return eval(f"lambda args: {code}", dict(SYMPY_INTERP))

    def forget_tensors(self) -> None:
        """Compiled: the arguments are not referred to any more, not even weakly, as Dynamo does with its own
        (clear_compile_context_weakrefs, torch 2.13): see memory.py."""
        describer = self._mode.fake_tensor_converter.meta_converter.describer
        for known in (self.context.tensor_to_context, describer.lookup_tensor, describer.lookup_storage):
            known.clear()

    def _meet_symbols(self, args: Sequence[Any]) -> None:
        """A new symbol for each of Dynamo's, read where it is an input or, if it is none, a tensor's size."""
        from torch._dynamo.source import TensorProperty, TensorPropertySource

        triples = list(zip(self._olds, args, self._sources, strict=True))
        for old, value, source in triples:
            if isinstance(old, torch.SymInt):
                self._meet(_expr(old), value, source)
        for old, value, source in triples:
            for dim, size in enumerate(old.shape if is_fake(old) else ()):
                self._meet(_expr(size), value.shape[dim], TensorPropertySource(source, TensorProperty.SIZE, dim))

    def _meet(self, old: Any, value: int, source: Any) -> None:
        from torch.fx.experimental.symbolic_shapes import DimDynamic

        if not isinstance(old, sympy.Symbol) or old in self._new:
            return
        new = self._env.create_symbol(
            value, source, DimDynamic.DYNAMIC, positive=old.is_positive, do_not_specialize_zero_one=True
        )
        known = next(env for env in map(_env_of, self._olds) if env is not None).var_to_range.get(old)
        if known is not None and known.lower <= value <= known.upper:
            self._env.var_to_range[new] = known
        self._new[old] = new

    def _fake(self, old: Any, value: torch.Tensor, source: Any) -> Any:
        """The fake of a tensor, which the mode knows it by from now on."""
        from torch._dynamo.source import TensorProperty, TensorPropertySource
        from torch.fx.experimental.symbolic_shapes import DimDynamic, StatefulSymbolicContext

        if not is_fake(old) or not any(_expr(each).free_symbols for each in _numbers(old)):
            if is_fake(old) and old.item_memo is not None:  # a Python number that Dynamo made a tensor of
                return self._mode.from_tensor(value, source=source)
            return self._mode.from_tensor(value, static_shapes=True)
        sizes = [(TensorProperty.SIZE, dim, size) for dim, size in enumerate(old.shape)]
        strides = [(TensorProperty.STRIDE, dim, stride) for dim, stride in enumerate(old.stride())]
        asked = [(TensorPropertySource(source, what, dim), _expr(each)) for what, dim, each in (*sizes, *strides)]
        asked += [(TensorPropertySource(source, TensorProperty.STORAGE_OFFSET), _expr(old.storage_offset()))]
        dims = [DimDynamic.DYNAMIC if _expr(size).free_symbols else DimDynamic.STATIC for size in old.shape]
        symbols = StatefulSymbolicContext(
            dynamic_sizes=dims,
            dynamic_strides=[DimDynamic.INFER_STRIDE] * len(dims),
            constraint_sizes=[None] * len(dims),
            constraint_strides=[None] * len(dims),
            tensor_source=source,
            shape_env_to_source_to_symbol_cache={
                id(self._env): {each.name: expr.xreplace(self._new) for each, expr in asked}
            },
        )
        self.context.tensor_to_context[value] = symbols
        return self._mode.from_tensor(value, symbolic_context=symbols, source=source)


@contextlib.contextmanager
def compiling_anew(gm: fx.GraphModule, args: Sequence[Any]) -> Iterator[Anew]:
    """Around compiling a Dynamo graph for the arguments of a call. The state of the random numbers is left alone.

    Not while another thread compiles: what torch.fx patches while it traces is the process's.
    """
    from torch._dynamo.convert_frame import compile_lock
    from torch._guards import tracing
    from torch.utils._python_dispatch import _disable_current_modes

    state = random.getstate()
    try:
        with (
            compile_lock,
            _others_called(),
            _disable_current_modes(),
            _saving_as_it_is(),
            torch.random.fork_rng(cuda_devices(args)),
        ):
            anew = Anew(gm, args)
            try:
                with tracing(anew.context):
                    yield anew
            finally:
                anew.forget_tensors()
    finally:
        random.setstate(state)


_tracing_thread: int | None = None


@contextlib.contextmanager
def _others_called() -> Iterator[None]:
    """Other threads may call what is compiled meanwhile: under Inductor it was compiled at the first call, for good.

    torch.fx marks the process, not the thread, as one that traces, and torch.compile refuses calls where it finds the
    mark. It asks a function that it holds since it was called (torch._dynamo.eval_frame, seen with torch 2.13), so that
    one gets another body for a while. Held under Dynamo's compile_lock.
    """
    global _tracing_thread
    from torch.fx._symbolic_trace import is_fx_symbolic_tracing

    outer, body = _tracing_thread, is_fx_symbolic_tracing.__code__
    _tracing_thread = threading.get_ident()
    is_fx_symbolic_tracing.__code__ = _is_tracing_here.__code__
    try:
        yield
    finally:
        is_fx_symbolic_tracing.__code__, _tracing_thread = body, outer


def _is_tracing_here() -> bool:
    """Runs with the names of torch.fx._symbolic_trace, so that it imports its own."""
    import threading

    import torch
    from torch.fx._symbolic_trace import is_fx_tracing

    from loka_compile.compat import anew

    here = anew._tracing_thread in (None, threading.get_ident())
    return here and is_fx_tracing() and not torch.compiler.is_compiling()


@contextlib.contextmanager
def _saving_as_it_is() -> Iterator[None]:
    """Autograd saves tensors without hooks meanwhile, because a checkpoint around the call counts what is saved."""
    autograd, hooks = torch._C._autograd, []
    while (top := autograd._top_saved_tensors_default_hooks(True)) is not None:
        hooks.append(top)
        autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(hooks):
            autograd._push_saved_tensors_default_hooks(pack, unpack)


def unknown_sizes(graph: fx.Graph) -> str:
    """A symbol that the arguments of a call do not tell, so that the graph is compiled with Dynamo or not at all."""
    olds = _examples(graph)
    if number := next((old for old in olds if isinstance(old, torch.SymFloat)), None):
        return str(number)
    told = {_expr(old) for old in olds if isinstance(old, torch.SymInt)}
    told |= {_expr(size) for old in olds if is_fake(old) for size in old.shape}
    used = [_expr(each) for old in olds for each in (_numbers(old) if is_fake(old) else ())]
    used += [_expr(old) for old in olds if isinstance(old, torch.SymInt)]
    return next((str(symbol) for expr in used for symbol in expr.free_symbols if symbol not in told), "")


def _examples(graph: fx.Graph) -> list[Any]:
    return [node.meta.get("example_value") for node in graph.find_nodes(op="placeholder")]


def _numbers(fake: torch.Tensor) -> tuple[Any, ...]:
    return *fake.shape, *fake.stride(), fake.storage_offset()


def _expr(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def _env_of(value: Any) -> Any:
    if isinstance(value, torch.SymInt):
        return value.node.shape_env
    return value.fake_mode.shape_env if is_fake(value) else None


def _know_unbacked(env: Any, graph: fx.Graph) -> None:
    """Sizes that the data decide have symbols of their own in Dynamo's graph. Tracing makes new ones and gives them
    these names; one that had such a name already would be taken for the same (rebind_unbacked, torch 2.13)."""
    names = {str(symbol) for node in graph.nodes for symbol in node.meta.get("unbacked_bindings") or ()}
    with env.ignore_fresh_unbacked_symbols():
        for make in (env.create_unbacked_symint, env.create_unbacked_symfloat):
            kind = str(make().node.expr).rstrip("0123456789")
            left = {name for name in names if name.rstrip("0123456789") == kind}
            left.discard(f"{kind}0")
            while left:
                left.discard(str(make().node.expr))


def _shape_env_like(olds: Sequence[Any]) -> Any:
    """A new ShapeEnv with the settings of Dynamo's."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    old = next((env for env in map(_env_of, olds) if env is not None), None)
    names = ("allow_scalar_outputs", "allow_dynamic_output_shape_ops")
    return ShapeEnv(**{name: getattr(old, name) for name in names} if old is not None else {})
