"""What was replaced for a while comes back as it was."""

from __future__ import annotations

import pytest

from loka_compile.compat.instead import instead


class Owner:
    @staticmethod
    def static(x: int) -> int:
        return x

    @classmethod
    def of_class(cls, x: int) -> int:
        return x

    def method(self, x: int) -> int:
        return x


@pytest.mark.parametrize("name", ["static", "of_class", "method"])
def test_it_comes_back_as_it_was(name: str) -> None:
    with pytest.raises(RuntimeError, match="inside"), instead(Owner, name, staticmethod(lambda x: -x)):
        assert getattr(Owner(), name)(1) == -1
        raise RuntimeError("inside")
    assert getattr(Owner(), name)(1) == 1
