"""Warm starts: a second process takes the compiled code from torch's caches, its record is complete, no plan is stale.

Each run is a process of its own; those that share a cache directory are the cold and the warm start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import hashlib, json, sys
import torch
from torch import nn
from torch._dynamo.utils import counters
import loka_compile as loka
from loka_compile.inspect.compiled import graphs_of

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 48)

    def forward(self, x):
        return self.second(self.first(x).relu())

given = json.loads(sys.argv[1])
torch.manual_seed(0)
model, x = Model(), torch.randn(16, 32)
compiled = torch.compile(model, backend="loka", options=given["options"], dynamic=given["dynamic"])
with torch.set_grad_enabled(given["training"]):
    outs = [compiled(x)]
if given["training"]:
    outs[0].square().sum().backward()
    outs += [parameter.grad for parameter in model.parameters()]
counts = {name: {str(key): value for key, value in table.items()} for name, table in counters.items()}
records = loka.records(compiled)
print(json.dumps({
    "autograd": counts.get("aot_autograd", {}),
    "inductor": {k: v for k, v in counts.get("inductor", {}).items() if k.startswith("fxgraph")},
    "bits": [hashlib.sha256(out.detach().numpy().tobytes()).hexdigest() for out in outs],
    "records": [repr(record) for record in records],
    "diffs": {stage.name: stage.diff for record in records for stage in record.stages},
    "kernels": [record.kernels for record in records],
    "missing": [record.missing for record in records],
    "plan": loka.plan(compiled).fingerprint,
    "code": [graph.source_code for graph in graphs_of(compiled)],
}))
"""


@pytest.fixture(scope="module")
def plans(tmp_path_factory, plan_for):
    """Paths of plan files for the script's model, by recipe."""
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 48)

        def forward(self, x):
            return self.second(self.first(x).relu())

    folder = tmp_path_factory.mktemp("plans")
    for recipe in ("int8_rowwise", "fp8_rowwise"):
        plan_for(recipe, Model(), torch.randn(16, 32)).save(folder / f"{recipe}.json")
    return {recipe: str(folder / f"{recipe}.json") for recipe in ("int8_rowwise", "fp8_rowwise")}


def start(cache, options, training=False, dynamic=None):
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    given = json.dumps({"options": options, "training": training, "dynamic": dynamic})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, given], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def cold(tmp_path_factory, plans):
    """An inference run that found nothing in its cache: the folder and what it saw."""
    cache = tmp_path_factory.mktemp("cache")
    return cache, start(cache, {"plan": plans["int8_rowwise"]})


def hits(seen):
    return seen["autograd"].get("autograd_cache_hit", 0)


def test_nothing_bypasses_the_caches(cold):
    _, seen = cold
    assert seen["autograd"].get("autograd_cache_bypass", 0) == 0, seen["autograd"]
    assert seen["inductor"].get("fxgraph_cache_bypass", 0) == 0, seen["inductor"]
    assert (seen["autograd"]["autograd_cache_miss"], seen["autograd"]["autograd_cache_saved"]) == (1, 1)


def test_a_warm_start_is_a_hit_with_equal_results_and_a_complete_record(cold, plans):
    cache, first = cold
    second = start(cache, {"plan": plans["int8_rowwise"]})
    assert hits(second) == 1 and "autograd_cache_miss" not in second["autograd"]
    assert second["bits"] == first["bits"]
    assert second["records"] == first["records"] and all(second["diffs"][name] for name in ("precision", "lower"))
    assert second["kernels"] == [dict.fromkeys(["first#0:output", "second#0:output"], "loka.frozen_int_mm")]
    assert second["missing"] == [[]]
    assert second["plan"] == first["plan"] and second["code"] == first["code"]


def test_another_plan_is_compiled_anew(cold, plans):
    cache, first = cold
    other = start(cache, {"plan": plans["fp8_rowwise"]})
    assert hits(other) == 0 and other["bits"] != first["bits"]
    assert set(other["kernels"][0].values()) == {"loka.frozen_gemm"} and other["missing"] == [[]]


def test_a_plan_file_that_changed_is_not_served_stale(cold, plans, tmp_path):
    cache, first = cold
    with open(plans["int8_rowwise"]) as file:
        text = file.read()
    changed = tmp_path / "plan.json"
    changed.write_text(text.replace('"chosen": "int8_rowwise/aten"', '"chosen": "keep"', 1))
    seen = start(cache, {"plan": str(changed)})
    assert hits(seen) == 0 and seen["bits"] != first["bits"]
    assert list(seen["kernels"][0]) == ["second#0:output"]


@pytest.mark.parametrize(
    "passes", [{"lower": False}, pytest.param({"precision": False}, marks=pytest.mark.slow)], ids=str
)
def test_another_option_is_compiled_anew(passes, cold, plans):
    cache, _ = cold
    seen = start(cache, {"plan": plans["int8_rowwise"], "passes": passes})
    assert hits(seen) == 0
    assert seen["kernels"] == [{}]


@pytest.mark.slow
def test_a_warm_start_of_training(tmp_path, plans):
    first, second = (start(tmp_path, {"plan": plans["int8_rowwise"]}, training=True) for _ in range(2))
    assert hits(first) == 0 and hits(second) == 1
    assert second["bits"] == first["bits"] and second["records"] == first["records"]
    assert len(second["kernels"][0]) == 5 and second["missing"] == [[]]


@pytest.mark.slow
def test_a_warm_start_with_dynamic_sizes(tmp_path, plans):
    first, second = (start(tmp_path, {"plan": plans["int8_rowwise"]}, dynamic=True) for _ in range(2))
    assert hits(first) == 0 and hits(second) == 1
    assert second["bits"] == first["bits"] and second["records"] == first["records"]


@pytest.mark.slow
def test_a_warm_start_of_no_configuration(tmp_path):
    # Float times may choose otherwise in another process, but the times are remembered on disk. The plan is made at
    # the first call: by default the first calls are measured, and run no code that could be cached.
    first, second = (start(tmp_path, {"min_speedup": 0, "measure_calls": 0}) for _ in range(2))
    assert second["plan"] == first["plan"] and hits(second) == 1 and second["bits"] == first["bits"]
