"""The README's example runs, and the names in its table are there."""

import importlib
import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[3] / "examples" / "lattice" / "README.md"


def test_the_example_of_own_data_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), names)  # the compiled model is not called: that takes minutes
    said = capsys.readouterr().out
    assert "merged" in said or "apart" in said
    assert "'shop: click'" in said and isinstance(names["served"], torch._dynamo.eval_frame.OptimizedModule)


NAMES = re.findall(r"\| `([a-z_]+(?:\.[a-z_]+)*)\.([A-Za-z_]+)\(", README.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("module", "name"), NAMES, ids=lambda each: each)
def test_the_parts_alone_are_where_the_table_says(module, name):
    assert hasattr(importlib.import_module(f"examples.lattice.{module}"), name)


def test_the_table_has_parts():
    assert len(NAMES) >= 7
