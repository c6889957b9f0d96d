"""Random numbers as Inductor's generated code draws them, op by op.

Inductor takes one seed a call from the generator and counts from there by Philox (4x32, ten rounds), so dropout run op
by op and dropout in generated code draw the same from the same state only if both do that. On a CPU these are the same
numbers (cpp_prefix.h, ATen/core/PhiloxRNGEngine.h, seen with torch 2.13); on a GPU, whose kernels make floats of the
same bits in another way, they are other ones, as reproducible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

_WORD = 0xFFFFFFFF
_STEPS = 0x9E3779B9, 0xBB67AE85
_FACTORS = 0xD2511F53, 0xCD9E8D57
_COMPARISONS = {getattr(torch.ops.aten, name) for name in ("gt", "ge", "lt", "le", "eq", "ne")}
_CHUNK = 2**15
"""Numbers at a time: the words of so many stay in a core's cache."""


def cuda_devices(values: Iterable[Any]) -> list[int]:
    """The GPUs that tensors among the values lie on, for torch.random.fork_rng; the CPU's generator is always kept."""
    return sorted({x.get_device() for x in values if isinstance(x, Tensor) and x.is_cuda})


def draw_like_inductor(gm: fx.GraphModule) -> None:
    """Let a graph of Inductor's random operators draw the numbers that its generated code would."""
    prims = torch.ops.prims
    ours = {
        prims.inductor_seeds.default: _seeds,
        prims.inductor_random.default: _random,
        prims.inductor_randint.default: _randint,
    }
    for node in gm.graph.find_nodes(op="call_function", target=prims.inductor_random.default):
        _compare_as_drawn(node)
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target in ours:
            node.target = ours[node.target]


def _compare_as_drawn(draw: fx.Node) -> None:
    """Generated code computes in float32 what it casts to 16 bits on the way, so it compares a number as it was drawn:
    a dropout in bfloat16 drops by that, not by the number in 16 bits. A probability is one of 16 bits there."""
    for cast in [user for user in draw.users if user.target is torch.ops.prims.convert_element_type.default]:
        for comparison in [user for user in cast.users if getattr(user.target, "overloadpacket", None) in _COMPARISONS]:
            comparison.replace_input_with(cast, draw)
            number = comparison.args[1]
            if isinstance(number, float):
                comparison.update_arg(1, torch.tensor(number, dtype=cast.meta["val"].dtype, device="cpu").item())


def _seeds(count: int, device: torch.device) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, [count], device=device)


def _random(size: Sequence[int], seed: Tensor, mode: str, *, align_dtype: torch.dtype | None = None) -> Tensor:
    return _numbers(size, seed, torch.float32, _normal if mode == "randn" else _uniform)


def _randint(low: int, high: int, size: Sequence[int], seed: Tensor) -> Tensor:
    span = high - low
    if span > 2**31:  # a remainder of 64 bits without sign, which torch has not
        return torch.randint(low, high, size, device=seed.device)
    return _numbers(size, seed, torch.int64, lambda a, b: ((b % span) * (2**32 % span) + a % span) % span + low)


def _numbers(size: Sequence[int], seed: Tensor, dtype: torch.dtype, make: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    out, key = torch.empty(tuple(size), dtype=dtype, device=seed.device), int(seed) & _WORD
    flat = out.view(-1)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        part.copy_(make(*_philox(key, torch.arange(start, start + part.numel(), device=seed.device))))
    return out


def _philox(key: int, counter: Tensor) -> tuple[Tensor, Tensor]:
    """The first two words of 32 bits for each counter."""
    a, zero = counter & _WORD, torch.zeros_like(counter)
    b, c, d = zero, zero, zero
    keys = [key, 0]
    for _ in range(10):
        first, second = a * _FACTORS[0], c * _FACTORS[1]  # the bits of 64 are right, whatever the sign
        a, c = ((second >> 32) & _WORD) ^ b ^ keys[0], ((first >> 32) & _WORD) ^ d ^ keys[1]
        b, d = second & _WORD, first & _WORD
        keys = [(k + step) & _WORD for k, step in zip(keys, _STEPS, strict=True)]
    return a, b


def _uniform(a: Tensor, _: Tensor) -> Tensor:
    return (a & 0x7FFFFFFF).float() * 4.6566127342e-10


def _normal(a: Tensor, b: Tensor) -> Tensor:
    """Box and Muller's."""
    radius = ((1 - _uniform(a, a)).log().double() * -2).sqrt()
    return (radius * (2 * math.pi * (1 - _uniform(b, b)).double()).cos()).float()
