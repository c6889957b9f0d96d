"""loka.adapt: the mods applied to a model's modules, so that what is dropped is gone: from optimizer, checkpoint, FSDP.

    report = loka.adapt(model, (batch,), mods=("no_bias", "block_norm", "hard_swish"))
    print(report)

The passes of mods.py look at the graph that Dynamo makes of one call and say which modules they would change;
these are then changed in place, and the model gives the same numbers as with `options={"mods": ...}`. A checkpoint of
the original still loads: what the model no longer has is left out, with a warning that lists it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from loka_compile import compat
from loka_compile.passes.adapt.block_norm import EPS, block_norm, block_of
from loka_compile.passes.adapt.mods import modified
from loka_compile.spec.options import Options


@dataclass(frozen=True)
class Adaptation:
    """changed: module -> what was done. kept: module -> why it was not. dropped: keys no longer in the state dict."""

    changed: Mapping[str, str]
    kept: Mapping[str, str]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.changed)} modules changed, {len(self.dropped)} parameters dropped"]
        lines += [f"  {name}: {did}" for name, did in self.changed.items()]
        lines += [f"  {name} as it was: {reason}" for name, reason in self.kept.items()]
        return "\n".join(lines)


class BlockNorm(nn.Module):
    """RMSNorm over blocks of a row's N values, without weights; see passes/adapt/block_norm.py."""

    def __init__(self, n: int, block: int, eps: float = EPS) -> None:
        super().__init__()
        self.n, self.block, self.eps = n, block, eps

    def forward(self, x: Tensor) -> Tensor:
        return block_norm(x, self.block, self.eps)

    def extra_repr(self) -> str:
        return f"{self.n}, block={self.block}, eps={self.eps}"


def adapt(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, mods: Sequence[str]
) -> Adaptation:
    """Change a model's modules in place. args, kwargs: what one call of it takes.

    A module is changed only if the mod applies in all calls of it and it is one of nn.Linear, nn.LayerNorm, nn.RMSNorm,
    nn.SiLU; what is written out in a forward is only reached by `options={"mods": ...}`, and is reported as kept.
    Raises OptionsError on an unknown name.
    """
    mods = Options(mods=tuple(mods)).mods
    rewritten: dict[str, dict[str, str]] = {name: {} for name in mods}
    kept: dict[str, str] = {}

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        compat.name_root(gm)
        for change in modified(gm, mods)[1]:
            rewritten[change.name].update({each.site: each.did for each in change.result.rewrites})
            kept.update({each.site: each.reason for each in change.result.rejects})
        return gm.forward

    with torch.no_grad():
        compat.compile_apart(model, backend=backend)(*args, **(kwargs or {}))
    before = set(model.state_dict())
    changed: dict[str, str] = {}
    for mod, found in rewritten.items():
        for name, did in found.items():
            if name in kept:
                continue
            reason = CHANGE[mod](model, name)
            if reason:
                kept[name] = reason
            else:
                changed[name] = "; ".join(filter(None, (changed.get(name), did)))
    dropped = tuple(sorted(before - set(model.state_dict())))
    if dropped:
        _load_originals(model, dropped)
    return Adaptation(changed, {name: why for name, why in kept.items() if name not in changed}, dropped)


def _drop_bias(model: nn.Module, name: str) -> str:
    module = _submodule(model, name)
    if not isinstance(module, nn.Linear | nn.LayerNorm):
        return f"its bias is used in the forward of a {type(module).__name__}, not of an nn.Linear or nn.LayerNorm"
    module.register_parameter("bias", None)
    return ""


def _block_norm(model: nn.Module, name: str) -> str:
    module = _submodule(model, name)
    if type(module) not in (nn.LayerNorm, nn.RMSNorm):
        return f"the norm is written out in the forward of a {type(module).__name__}"
    (n,) = module.normalized_shape
    return _replace(model, name, BlockNorm(n, block_of(n), EPS if module.eps is None else module.eps))


def _hard_swish(model: nn.Module, name: str) -> str:
    module = _submodule(model, name)
    if type(module) is not nn.SiLU:
        return f"the activation is written out in the forward of a {type(module).__name__}"
    return _replace(model, name, nn.Hardswish())


CHANGE: dict[str, Callable[[nn.Module, str], str]] = {
    "no_bias": _drop_bias,
    "block_norm": _block_norm,
    "hard_swish": _hard_swish,
}
"""Changes a model's module of that name in place, or says why not."""


def _submodule(model: nn.Module, name: str) -> nn.Module:
    return model if name == "self" else model.get_submodule(name)


def _replace(model: nn.Module, name: str, module: nn.Module) -> str:
    """Replace a module wherever it is registered. Returns why not, "" if it was done."""
    if name == "self":
        return "the model itself cannot be replaced in place"
    old = model.get_submodule(name)
    module.train(old.training)
    for parent in list(model.modules()):
        for child, value in list(parent.named_children()):
            if value is old:
                setattr(parent, child, module)
    return ""


def _load_originals(model: nn.Module, dropped: Sequence[str]) -> None:
    """Let a checkpoint of the original load; what is left out of it is said."""
    model.register_load_state_dict_pre_hook(functools.partial(_leave_out, dropped))


def _leave_out(dropped: Sequence[str], module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    found = [prefix + name for name in dropped if prefix + name in state]
    for key in found:
        del state[key]
    if found:
        warnings.warn(
            f"loka.adapt: {len(found)} of the checkpoint's entries are no longer in the model and were left out: "
            f"{', '.join(found)}",
            stacklevel=2,
        )
