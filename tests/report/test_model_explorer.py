"""What Model Explorer reads: validated against its own data classes where it is installed, and against their like."""

from __future__ import annotations

import jsonschema
import pytest

from loka_compile.report import document
from loka_compile.report.compare import compared
from loka_compile.report.errors import ReportError
from loka_compile.report.model_explorer import graphs, node_data, save
from tests.report.made_up import large
from tests.report.plans import plan_with

PAIR = {
    "type": "object",
    "required": ["key", "value"],
    "properties": {"key": {"type": "string"}, "value": {"type": "string"}},
}
EDGE = {name: {"type": "string"} for name in ("sourceNodeId", "sourceNodeOutputId", "targetNodeInputId")}
NODE = {
    "id": {"type": "string"},
    "label": {"type": "string"},
    "namespace": {"type": "string"},
    "attrs": {"type": "array", "items": PAIR},
    "incomingEdges": {
        "type": "array",
        "items": {"type": "object", "properties": EDGE, "required": list(EDGE), "additionalProperties": False},
    },
    "outputsMetadata": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["id", "attrs"],
            "properties": {"id": {"type": "string"}, "attrs": {"type": "array", "items": PAIR}},
        },
    },
}
COLLECTION = {
    "type": "object",
    "required": ["label", "graphs"],
    "properties": {
        "label": {"type": "string"},
        "graphs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["id", "nodes"],
                "properties": {
                    "id": {"type": "string"},
                    "nodes": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": NODE,
                            "required": ["id", "label"],
                            "additionalProperties": False,
                        },
                    },
                },
            },
        },
    },
}
"""GraphCollection of model_explorer 0.1.34 (graph_builder.py), as far as it is written here."""
RESULT = {"type": "object", "required": ["value"], "properties": {"value": {"type": "number"}}}
STOP = {"type": "object", "required": ["stop", "bgColor"], "properties": {"stop": {"type": "number"}}}
NODE_DATA = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "required": ["results"],
        "properties": {
            "results": {"type": "object", "additionalProperties": RESULT},
            "name": {"type": "string"},
            "gradient": {"type": "array", "items": STOP},
        },
        "additionalProperties": False,
    },
}
"""ModelNodeData (node_data_builder.py)."""


def test_the_graphs_are_a_collection(report):
    made = graphs([report])
    jsonschema.validate(made, COLLECTION)
    assert [graph["id"] for graph in made["graphs"]][-2:] == ["graph_1 before", "graph_1 after"]
    for graph in made["graphs"]:
        ids = [node["id"] for node in graph["nodes"]]
        assert len(set(ids)) == len(ids)
        assert {edge["sourceNodeId"] for node in graph["nodes"] for edge in node["incomingEdges"]} <= set(ids)
    assert any(node["namespace"] == "blocks/0/up" for node in made["graphs"][0]["nodes"])


def test_node_data_is_of_nodes_that_are_there(report):
    found, made = node_data([report]), graphs([report])
    ids = {graph["id"]: {node["id"] for node in graph["nodes"]} for graph in made["graphs"]}
    assert set(found) == {"error", "time", "bytes"}
    for data in found.values():
        jsonschema.validate(data, NODE_DATA)
        assert set(data) == set(ids) and all(set(each["results"]) <= ids[name] for name, each in data.items())
    lowered = [site for site in report["sites"] if site["outcome"] == "lowered" and "graph_0" in site["graphs"]]
    errors = found["error"]["graph_0 after"]["results"]
    assert sorted(each["value"] for each in errors.values()) == sorted(site["mere"] for site in lowered)


def test_a_site_s_time_counts_once(report):
    times = node_data([report])["time"]["graph_0 before"]["results"]
    sites = [site for site in report["sites"] if "graph_0" in site["graphs"]]
    assert sum(each["value"] for each in times.values()) == pytest.approx(sum(site["time_before_us"] for site in sites))


def test_model_explorer_s_own_classes_take_them(report):
    builder = pytest.importorskip("model_explorer.graph_builder", reason="ai-edge-model-explorer is not installed")
    known = {field for field in builder.GraphNode.__dataclass_fields__}
    for graph in graphs([report])["graphs"]:
        for node in graph["nodes"]:
            assert set(node) <= known
            edges = [builder.IncomingEdge(**edge) for edge in node["incomingEdges"]]
            builder.GraphNode(**{**node, "incomingEdges": edges})


def test_a_comparison_is_both_of_its_sides(tmp_path):
    one = large(4, 20)
    made = graphs([compared(one, one)])
    assert made["graphs"] == graphs([one, one])["graphs"]
    assert [graph["id"] for graph in made["graphs"]] == [
        f"{x} graph_0 {when}" for x in "AB" for when in ("before", "after")
    ]


def test_no_graph_is_an_error(tmp_path):
    with pytest.raises(ReportError, match="no graph in plan: Model Explorer shows what was compiled"):
        save([document.of_plan(plan_with(), "plan")], tmp_path / "graphs")
    assert not (tmp_path / "graphs").exists()
