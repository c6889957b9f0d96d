"""A report as large as they come: 2,000 sites with all their candidates, 20,000 nodes before and after."""

from __future__ import annotations

from typing import Any

from loka_compile.report import document
from loka_compile.report.texts import Texts

RECIPES = ("bf16", "fp16", "int8_rowwise", "uint8_rowwise", "fp8_tensorwise", "fp8_rowwise", "fp8_blockwise")
PROVIDERS = ("aten", "triton", "onednn")
OPS = ("aten.view", "aten.addmm", "aten.relu", "aten.add.Tensor", "aten.mul.Tensor", "aten.native_layer_norm")
PER_SITE = 10
"""Nodes for each GEMM."""


def large(sites: int = 2000, nodes: int = 20_000, nested: bool = True) -> dict[str, Any]:
    """nested: in modules; else all of them in the model itself."""
    texts = Texts()
    names = [f"blocks.{i // 40}.towers.{i // 10 % 4}.linear{i % 10}" for i in range(sites)]
    found = [_site(i, f"{name}#0:output", name, texts) for i, name in enumerate(names)]
    modules = [names[i // PER_SITE % sites] if nested else "self" for i in range(nodes)]
    before = _snapshot("before", modules, nodes, texts, "")
    after = _snapshot("after", modules, nodes, texts, "precision")
    stages = [
        {
            "name": name,
            "graph": "graph_0",
            "kind": "inference",
            "rewrites": done,
            "refusals": [],
            "diff": "",
            "added": 0,
            "removed": 0,
        }
        for name, done in (("share", []), ("precision", [[texts(s["key"]), texts("int8"), texts("")] for s in found]))
    ]
    verdict = {
        "target": "cpu",
        "origin": "made up",
        "sites": sites,
        "lowered": sites // 2,
        "missing": 0,
        "warnings": [],
        "notes": [],
        "raced": ["1.40x the unplanned graph's speed, measured here"],
        "gemm_before_us": 100.0 * sites,
        "gemm_after_us": 70.0 * sites,
        "gemm_timed": sites,
        "time_sources": ["measured on this CPU"],
        "worst_mere": 0.15,
        "worst_site": found[1]["key"],
        "budget": {"mere": 0.2, "sqnr_db": 20.0, "speedup": 1.05},
        "device": "cpu",
        "graphs": {"graph_0": "inference"},
    }
    kernels = [[f"cpp_fused_{i}", "cpp", 1, f"void kernel_{i}(float* x) {{}}\n"] for i in range(nodes // PER_SITE)]
    graph = {"name": "graph_0", "training": False, "snapshots": [before, after], "kernels": kernels}
    parts = {"verdict": verdict, "sites": found, "graphs": [graph], "stages": stages}
    return document.new("compilation", "a large model", texts, **parts)


def _site(i: int, key: str, module: str, texts: Texts) -> dict[str, Any]:
    lowered = i % 2 == 1
    times = {name: 40.0 + (i * 7 + place * 13) % 100 for place, name in enumerate(RECIPES)}
    candidates: list[list[Any]] = [[texts("keep"), 0.0, "inf", 0.0, 100.0, -1, int(not lowered)]]
    for place, recipe in enumerate(RECIPES):
        for provider in PROVIDERS:
            chosen = int(lowered and recipe == "int8_rowwise" and provider == "aten")
            reason = f"slower than int8_rowwise/aten: {times[recipe]:.0f} us against {40 + i % 50}"
            error = 0.001 * (place + 1) * (1 + i % 9)
            row = [
                texts(f"{recipe}/{provider}"),
                error,
                40.0,
                error / 2,
                times[recipe],
                -1 if chosen else texts(reason),
            ]
            candidates.append([*row, chosen])
    stats = {
        "rows": 4096,
        "values": 1 << 20,
        "zero_rows": i % 5,
        "non_finite": 0,
        "fp16_overflows": 0,
        "mean": 0.01,
        "std": 1.0,
        "kurtosis": 3.1,
        "amax": 5.5,
        "least": -5.5,
        "fp8_underflow": 0.001,
        "dynamic_range": 22.0,
        "quantiles": [[0.5, 0.67], [0.9, 1.6], [0.99, 2.6], [0.999, 3.3]],
        "model": "gaussian",
        "fallback": "",
    }
    speedup, features = 100 / (40 + i % 50), 64 + i % 512
    done = [texts(each) for each in ("precision", "inference", "int8_rowwise by aten", "loka.frozen_int_mm")]
    refused = [texts(each) for each in ("precision", "inference", f"addmm_{i}", "kept, as planned")]
    reason = f"fastest within budget, {speedup:.2f}x" if lowered else "no candidate within budget"
    either = lambda yes, no=None: yes if lowered else no  # noqa: E731
    return {
        "key": key,
        "module": module,
        "role": "output",
        "op": "addmm",
        "shape": f"(4096, {features}) @ ({features}, 256)",
        "dtype": "float32",
        "flops": 2 * 4096 * 256 * features,
        "source": "model.py:42",
        "epilogue": "activation",
        "graphs": ["graph_0"],
        "recipe": either("int8_rowwise", "keep"),
        "provider": either("aten", ""),
        "runs_as": either("loka.frozen_int_mm", ""),
        "outcome": either("lowered", "kept"),
        "mere": either(0.003 * (1 + i % 50)),
        "sqnr_db": either(40.0),
        "median_rel": either(0.002),
        "time_before_us": 100.0,
        "time_after_us": either(100 / speedup, 100.0),
        "speedup": either(speedup, 1.0),
        "time_source": texts("measured on this CPU"),
        "reason": texts(reason),
        "ranges": [],
        "candidates": candidates,
        "done": either([done], []),
        "refusals": either([], [refused]),
        "operands": {
            "calls": 3,
            "lhs": stats,
            "rhs": stats,
            "real": {"int8_rowwise": 0.02},
            "drawn": {"int8_rowwise": 0.021},
            "segments": {},
        },
    }


def _snapshot(name: str, modules: list[str], nodes: int, texts: Texts, made_by: str) -> dict[str, Any]:
    keys = [f"{modules[i]}#0:output" if i % PER_SITE == 1 else "" for i in range(nodes)]
    names = [f"n{i}" for i in range(nodes)]
    return {
        "name": name,
        "names": names,
        "target": [texts(OPS[i % len(OPS)]) for i in range(nodes)],
        "module": texts.of(modules),
        "type": [texts(f"f32[4096, {64 + i % 512}]") for i in range(nodes)],
        "bytes": [4 * 4096 * (64 + i % 512) for i in range(nodes)],
        "line": [texts(f"model.py:{i % 3000} in forward\tx = self.block(x)") for i in range(nodes)],
        "site": texts.of(keys),
        "phase": [texts("")] * nodes,
        "made": [texts(made_by if i % PER_SITE == 1 else "") for i in range(nodes)],
        "inputs": [
            [i - 1] + ([i - PER_SITE] if i % 7 == 0 and i >= PER_SITE else []) if i else [] for i in range(nodes)
        ],
        "origins": [[texts(each)] for each in names] if made_by else [[] for _ in names],
        "kernels": [[i // PER_SITE] for i in range(nodes)] if made_by else [[] for _ in names],
        "classes": {f"blocks.{i}": "Block" for i in range(50)},
    }
