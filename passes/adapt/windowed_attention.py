"""windowed_attention: full self-attention becomes attention to positions |i - j| <= window, in O(T window).

Kunlun's sliding window: two-sided, or only backwards if is_causal is set. The model computes something else and has to
be trained that way. There are three forms; all call F.scaled_dot_product_attention, so torch's fused kernel runs,
forward and backward, on every device:

    in_slices      T known, few blocks: one attention for each block of `window` queries, over slices of k and v
    in_blocks      T symbolic or many blocks: blocks are laid side by side as one larger batch
                   queries (B, H, T, d) -> (B T/w, H, w, d), keys -> (B T/w, H, 3w, d), causal 2w
    under_a_mask   T too short for blocks to pay: a mask over all keys

The values are the same in all three, so a model means the same at every length. `loka::gdpa`, dense or jagged, has a
window of its own. (In torch 2.13 FlexAttention has no backward on a CPU and was no faster there in inference.)
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph.edit import emit, replace
from loka_compile.graph.facts import Reading
from loka_compile.graph.flops import flops_of, total
from loka_compile.graph.insert import insert
from loka_compile.graph.layers import calls_of
from loka_compile.graph.sites import module_name, module_names
from loka_compile.kernels.gdpa.gdpa import Gdpa
from loka_compile.passes.adapt._windows import in_blocks, in_slices, under_a_mask
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, rejected
from loka_compile.spec.compskip import name_pattern, nearest
from loka_compile.spec.options import OptionsError

ATTENTION, GDPA = "scaled_dot_product_attention", "loka::gdpa"
MANY = 32
"""Up to this many blocks, each is written out as an attention of its own."""
DONE = "loka_window"
"""Marks an attention that has its window, so that applying the pass twice is applying it once."""


@dataclass(frozen=True)
class WindowedAttention:
    """windows: pattern of module paths -> window; `**` matches all. The first pattern that matches an attention's
        module, or a module around it, counts.
    whole: the graph is the whole model, so a pattern that matches nothing is an error.
    """

    windows: Mapping[str, int]
    whole: bool = True
    name: ClassVar[str] = "windowed_attention"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE
    adapts: ClassVar[bool] = True

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        graph = reading.graph
        self._check_patterns(graph)
        before, rewrites, rejects = total(reading, flops_of(graph)), [], []
        for node in list(graph.nodes):
            window = self._window(node) if reading.op(node) in (ATTENTION, GDPA) and DONE not in node.meta else None
            if window is None:
                continue
            reason = check(reading, node, window)
            if reason:
                rejects.append(rejected(node, reason))
            else:
                rewrites.append(Rewrite(module_name(node), _rewrite(reading, node, window)))
        if rewrites:
            after = total(reading, flops_of(graph))
            saved = f"{1 - after / before:.1%}" if before else "none"
            did = f"{saved} of the forward's FLOPs are gone ({before:,} to {after:,}, counted on the graph)"
            rewrites.append(Rewrite("all of these", did))
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))

    def _check_patterns(self, graph: fx.Graph) -> None:
        paths = list(calls_of(graph))
        for pattern in self.windows if self.whole else ():
            if pattern != "**" and not any(_around(pattern, path) for path in paths):
                raise OptionsError(f"window: no module is called {pattern}{nearest(pattern, paths)}")

    def _window(self, node: fx.Node) -> int | None:
        paths = [path for _, path, _ in module_names(node)]
        fit = (w for pattern, w in self.windows.items() if pattern == "**" or any(_around(pattern, p) for p in paths))
        return next(fit, None)


def check(reading: Reading, node: fx.Node, window: int) -> str:
    """Why the attention stays as it is; "" if it gets its window."""
    given = _arguments(reading, node)
    shape = [given[name].meta["example_value"].shape for name in list(given)[:3]]
    if reading.op(node) == GDPA:
        if given["window"] != -1:
            return f"it has a window of {given['window']} already"
        if given["cu_seqlens_q"] is not given["cu_seqlens_k"] or given["max_seqlen_q"] != given["max_seqlen_k"]:
            return "its queries and keys belong to different sequences"
        same = given["cu_seqlens_q"] is not None or compat.guard_free(shape[0][2] == shape[1][2])
        return "" if same else f"{shape[0][2]} queries look at {shape[1][2]} keys; a window needs as many of each"
    if len(shape[0]) != 4 or len(shape[1]) != 4 or given["query"].meta["example_value"].is_nested:
        return f"its queries are {tuple(shape[0])}; expected (batch, heads, length, width)"
    if any(compat.guard_free(size == 0) for size in shape[0]):
        return f"its queries are empty: {tuple(shape[0])}"
    t, s = shape[0][2], shape[1][2]
    if not compat.guard_free(t == s):
        return f"{t} queries look at {s} keys; a window needs as many of each"
    agree = all(compat.guard_free(a == b) for a, b in zip(shape[0][:2], shape[1][:2], strict=True))
    if given["enable_gqa"] or not agree:
        return f"queries {tuple(shape[0])} and keys {tuple(shape[1])} differ in batch or heads"
    if given["dropout_p"] != 0.0:
        return f"it has dropout on its weights (dropout_p = {given['dropout_p']}); use dropout on its result instead"
    if compat.guard_free(t <= window + 1):
        return f"a window of {window} covers all {t} positions"
    if given["attn_mask"] is not None:
        mask = given["attn_mask"].meta["example_value"]
        if mask.dim() != 4 or not compat.guard_free(mask.shape[2] == 1):
            return f"its mask is {tuple(mask.shape)}; expected a mask of keys, (batch or 1, heads or 1, 1, length)"
        if not compat.guard_free(mask.shape[3] == t):
            return f"its mask is for {mask.shape[3]} keys, not {t}"
    return ""


def _rewrite(reading: Reading, node: fx.Node, window: int) -> str:
    given = _arguments(reading, node)
    if reading.op(node) == GDPA:
        call = dataclasses.replace(Gdpa.of(node), window=window)
        new = emit(reading, node, call.target(), *call.args)
        replace(reading, node, new).meta[DONE] = window
        return f"window {window}"
    q, mask = given["query"], given["attn_mask"]
    value = reading.value(q)
    boolean = mask is not None and reading.value(mask).dtype == torch.bool
    causal, t = bool(given["is_causal"]), reading.shape(q)[2]
    args = q, given["key"], given["value"], mask, window, causal, given["scale"], boolean, value.device
    known = set(reading.graph.nodes)
    # Blocks pay if T has more of them than one block has neighbours.
    pays = compat.concrete(t) > (1 if causal else 2) * window
    if pays and isinstance(t, int) and t <= MANY * window:
        new = insert(reading, node, in_slices, *args, t)
    else:
        new = insert(reading, node, in_blocks if pays else under_a_mask, *args)
    replace(reading, node, new)
    for each in reading.graph.nodes:
        if each not in known and reading.op(each) == ATTENTION:
            each.meta[DONE] = window
    return f"window {window}" + ("" if pays else ", as a mask: too short for blocks to pay")


def _arguments(reading: Reading, node: fx.Node) -> dict[str, Any]:
    return {name: reading.arg(node, name) for name in reading.facts[node].given}


def _around(pattern: str, path: str) -> bool:
    """Whether the pattern names this module or a module around it."""
    return re.match(r"\.".join(map(name_pattern, pattern.split("."))) + r"(\.|$)", path) is not None
