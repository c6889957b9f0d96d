"""Each row of the table of private names still has something to stand in for: a new torch names the row it broke."""

from __future__ import annotations

import pytest

from loka_compile.preview.torch_patches import PATCHES

torch_has = pytest.mark.parametrize("patch", PATCHES, ids=str)


@torch_has
def test_what_is_patched_is_there(patch):
    assert hasattr(patch.holder(), patch.name) or patch.optional, f"{patch} is gone; the preview replaces it"


def test_no_name_is_patched_twice():
    assert len({str(patch) for patch in PATCHES}) == len(PATCHES)
