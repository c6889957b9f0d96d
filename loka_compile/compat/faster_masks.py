"""Masks in generated C++ are written and read as vectors.

Training keeps what a ReLU or a dropout let through as bytes. at::vec::VecMask::store and ::from go through arrays,
number by number, which a compiler told `-fno-tree-loop-vectorize`, as Inductor tells it (cpp_builder.py, torch 2.13),
leaves as they are: 6 ns for each value that is written, where a ReLU takes 0.3. On x86 both are two to four
instructions a vector.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from loka_compile.compat.instead import instead


@contextlib.contextmanager
def storing_masks() -> Iterator[None]:
    """C++ generated meanwhile stores contiguous masks as vectors."""
    import torch
    from torch._inductor.codegen.cpp import CppVecKernel, cexpr_index
    from torch._inductor.utils import IndentedBuffer

    as_written = CppVecKernel._get_store_line

    def store(
        self: Any, value: Any, var: str, index: Any, dtype: torch.dtype, accu_store: bool = False
    ) -> IndentedBuffer:
        lines = [] if accu_store or dtype != torch.bool else stored(self, value, f"{var} + {cexpr_index(index)}")
        if not lines or self._try_get_const_stride(index, self.itervars[self.tiling_idx]) != 1:
            return as_written(self, value, var, index, dtype, accu_store)
        code = IndentedBuffer()
        code.writelines(lines)
        return code

    loaded_as_written = CppVecKernel._get_vec_load_line

    def load(self: Any, var: str, index: Any, dtype: torch.dtype, load_mask: Any = None) -> str:
        expression = "" if load_mask or dtype != torch.bool else loaded(self, f"{var} + {cexpr_index(index)}")
        return expression or loaded_as_written(self, var, index, dtype, load_mask)

    with instead(CppVecKernel, "_get_store_line", store), instead(CppVecKernel, "_get_vec_load_line", load):
        yield


def stored(kernel: Any, value: Any, address: str) -> list[str]:
    """The lines that write a mask as bytes of 0 and 1; none where they are not known."""
    import torch

    if getattr(value, "dtype", None) != torch.bool or kernel.tail_size is not None:
        return []
    macros, count = kernel.vec_isa.build_macro(), kernel._get_num_vectors(torch.float)
    masks = f"auto masks = at::vec::VectorizedN<float, {count}>({kernel._get_mask_cast(value, torch.float)});"
    if "CPU_CAPABILITY_AVX512" in macros:
        each = [
            "auto mask = _mm512_castps_si512(masks[i]);",
            "auto bytes = _mm_maskz_set1_epi8(_mm512_test_epi32_mask(mask, mask), 1);",
            f"_mm_storeu_si128(reinterpret_cast<__m128i*>({address} + 16 * i), bytes);",
        ]
    elif "CPU_CAPABILITY_AVX2" in macros:
        each = [
            "auto zero = _mm256_cmpeq_epi32(_mm256_castps_si256(masks[i]), _mm256_setzero_si256());",
            "auto words = _mm_packs_epi32(_mm256_castsi256_si128(zero), _mm256_extracti128_si256(zero, 1));",
            "auto bytes = _mm_andnot_si128(_mm_packs_epi16(words, words), _mm_set1_epi8(1));",
            f"_mm_storel_epi64(reinterpret_cast<__m128i*>({address} + 8 * i), bytes);",
        ]
    else:
        return []
    return ["{", masks, f"for (int i = 0; i < {count}; i++)", "{", *each, "}", "}"]


def loaded(kernel: Any, address: str) -> str:
    """The expression that reads bytes as a mask; empty where it is not known."""
    import torch

    macros, count = kernel.vec_isa.build_macro(), kernel._get_num_vectors(torch.float)
    if kernel.tail_size is not None:
        return ""
    if "CPU_CAPABILITY_AVX512" in macros:
        each = (
            f"auto bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>({address} + 16 * i)); "
            "masks[i] = _mm512_castsi512_ps(_mm512_movm_epi32(_mm_test_epi8_mask(bytes, bytes)));"
        )
    elif "CPU_CAPABILITY_AVX2" in macros:
        each = (
            f"auto words = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>({address} + 8 * i))); "
            "masks[i] = _mm256_castsi256_ps(_mm256_cmpgt_epi32(words, _mm256_setzero_si256()));"
        )
    else:
        return ""
    vectors = f"at::vec::VectorizedN<float, {count}> masks; for (int i = 0; i < {count}; i++) {{ {each} }}"
    return f"[&] {{ {vectors} return {kernel._get_mask_type()}(masks); }}()"
