"""Inductor's kernels say what they move, by either of the functions that they have had for it."""

from __future__ import annotations

from typing import Any

from loka_compile.preview.kernel_bytes import with_bytes, with_bytes_of_old


class Old:
    """As torch 2.11 and 2.12 have it."""

    @classmethod
    def inductor_meta_common(cls) -> dict[str, Any]:
        return {"of": cls.__name__}

    def estimate_kernel_num_bytes(self) -> float:
        return 2e9


class New(Old):
    def inductor_meta_per_kernel(self) -> dict[str, Any]:
        return {"num_load": 3}


class Unknown(Old):
    def estimate_kernel_num_bytes(self) -> float:
        raise NotImplementedError


def test_before_torch_2_13_a_kernel_says_it_and_its_class_does_not(monkeypatch: Any) -> None:
    monkeypatch.setattr(Old, "inductor_meta_common", with_bytes_of_old(None, Old.inductor_meta_common))
    assert Old().inductor_meta_common() == {"of": "Old", "kernel_num_gb": 2.0}
    assert Old.inductor_meta_common() == {"of": "Old"}
    assert Unknown().inductor_meta_common() == {"of": "Old"}


def test_since_torch_2_13_what_all_have_in_common_is_left_alone(monkeypatch: Any) -> None:
    monkeypatch.setattr(New, "inductor_meta_common", with_bytes_of_old(None, New.inductor_meta_common))
    monkeypatch.setattr(New, "inductor_meta_per_kernel", with_bytes(None, New.inductor_meta_per_kernel))
    assert New().inductor_meta_common() == New.inductor_meta_common() == {"of": "New"}
    assert New().inductor_meta_per_kernel() == {"num_load": 3, "kernel_num_gb": 2.0}
