"""Uniform numbers in generated C++, many at once: those that Inductor draws, at a fifth of the time.

In Inductor's vectorized code each number is a call of a scalar function, ten rounds of Philox (CppVecOverrides.rand
and normalized_rand_cpu of cpp_prefix.h, torch 2.13): 7 ns a number, where a dropout takes 4 in eager. Trained with
dropout a BST was slower under Inductor than in eager for that alone. On x86 the rounds of 4 or 8 numbers are vectors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from loka_compile.compat.instead import instead


@dataclass(frozen=True)
class Words:
    """Vectors of 64 bits a lane, in each of which one word of 32 bits is computed with."""

    vector: str
    prefix: str
    bits: int

    @property
    def lanes(self) -> int:
        return self.bits // 64

    def load(self, address: str) -> str:
        return f"{self.prefix}_loadu_si{self.bits}(reinterpret_cast<const {self.vector}*>({address}))"

    def store(self, address: str, value: str) -> str:
        return f"{self.prefix}_storeu_si{self.bits}(reinterpret_cast<{self.vector}*>({address}), {value});"

    def every(self, word: str) -> str:
        return f"{self.prefix}_set1_epi64{'x' if self.bits == 256 else ''}(static_cast<int64_t>({word}))"

    def times(self, a: str, b: str) -> str:
        """64 bits of the product of the lower 32 of each."""
        return f"{self.prefix}_mul_epu32({a}, {b})"

    def high(self, a: str) -> str:
        return f"{self.prefix}_srli_epi64({a}, 32)"

    def xor(self, *each: str) -> str:
        first, *rest = each
        return f"{self.prefix}_xor_si{self.bits}({first}, {self.xor(*rest)})" if rest else first


WORDS = {
    "CPU_CAPABILITY_AVX512": Words("__m512i", "_mm512", 512),
    "CPU_CAPABILITY_AVX2": Words("__m256i", "_mm256", 256),
}
"""By the macro that Inductor compiles with; elsewhere numbers are drawn one by one."""


@contextlib.contextmanager
def drawing_many() -> Iterator[None]:
    """C++ generated meanwhile draws uniform numbers as vectors."""
    from torch._inductor.codegen.common import BracesBuffer
    from torch._inductor.codegen.cpp import CppVecOverrides
    from torch._inductor.virtualized import V

    one_by_one = CppVecOverrides.rand

    def rand(seed: Any, offset: Any) -> Any:
        macros: list[str] = V.kernel.vec_isa.build_macro()
        words = next((WORDS[each] for each in macros if each in WORDS), None)
        if words is None or V.kernel.tiling_factor % words.lanes:
            return one_by_one(seed, offset)
        code = BracesBuffer()
        code.writelines(["[&]()", *drawn(words, seed, offset, V.kernel), "()"])
        return code

    with instead(CppVecOverrides, "rand", staticmethod(rand)):
        yield


def drawn(words: Words, seed: Any, offset: Any, kernel: Any) -> list[str]:
    """Body of a lambda: the first of Philox's four words for each offset, as a float in [0, 1)."""
    import torch
    from torch._inductor.codegen.cpp_utils import DTYPE_TO_CPP

    count, vectors = kernel.tiling_factor, kernel._get_num_vectors(dtype=torch.float32)
    result = "at::vec::Vectorized<float>" if vectors == 1 else f"at::vec::VectorizedN<float, {vectors}>"
    factors = [words.every(each) for each in ("0xD2511F53u", "0xCD9E8D57u")]
    return [
        "{",
        f"{DTYPE_TO_CPP[offset.dtype]} offset[{count}];",
        f"uint64_t words[{count}];",
        f"float result[{count}];",
        f"{offset}.store(offset);",
        f"for (int i = 0; i < {count}; i++) words[i] = static_cast<uint32_t>(offset[i]);",
        f"for (int i = 0; i < {count}; i += {words.lanes})",
        "{",
        f"{words.vector} a = {words.load('words + i')}, b = {words.every('0')}, c = b, d = b;",
        f"uint32_t key = static_cast<uint32_t>({seed}), other = 0;",
        "for (int round = 0; round < 10; round++)",
        "{",
        f"{words.vector} first = {words.times('a', factors[0])}, second = {words.times('c', factors[1])};",
        f"a = {words.xor(words.high('second'), 'b', words.every('key'))};",
        f"c = {words.xor(words.high('first'), 'd', words.every('other'))};",
        "b = second; d = first; key += 0x9E3779B9u; other += 0xBB67AE85u;",
        "}",
        words.store("words + i", "a"),
        "}",
        f"for (int i = 0; i < {count}; i++)",
        "result[i] = uint32_to_uniform_float(static_cast<uint32_t>(words[i]));",
        f"return {result}::loadu(result);",
        "}",
    ]
