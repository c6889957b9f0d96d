"""The plan file: equal plans are equal bytes, and nothing but a plan is ever read as one."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import replace

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.spec.decision import KEEP, KEPT, Candidate, Decision, Range, Score
from loka_compile.spec.plan import Plan, PlanError, load_plan, parse_plan
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Site
from loka_compile.spec.target import TARGETS


def site(key="fc#0:output", M=64, N=48, K=32, **more):
    numbers = {"batch": 1, "M": M, "N": N, "K": K}
    sizes = {name: sympy.Integer(v) if isinstance(v, int) else v for name, v in numbers.items()}
    role = key.partition(":")[2].partition(".")[0]
    return Site(key=key, op="addmm", role=role, dtype=torch.float32, fqn=key.partition("#")[0], **sizes, **more)


PLAN = Plan(
    "cpu",
    {
        "fc#0:output": Decision(
            site(M=sympy.Symbol("s77", integer=True, positive=True), source="model.py:3", static_rhs=True),
            Candidate("int8_rowwise", "aten"),
            "fastest within budget, 2.00x",
            {KEEP: Score(time_us=10, time_source="measured"), "int8_rowwise/aten": Score(0.01, 40.25, 0.004, 5.0, "m")},
            ((Candidate("bf16", "aten"), "slow"), (Candidate("fp8_rowwise", "aten"), "é: MERE 0.3, budget 0.2")),
        ),
        "fc#0:grad_input": Decision(site("fc#0:grad_input", gradient="lhs"), KEPT, "no candidate within budget"),
    },
    origin="profile 0123",
)

names = st.text(max_size=12)
floats = st.floats(allow_nan=False)
scores = st.builds(Score, floats, floats, floats, st.none() | floats, names)
candidates = st.sampled_from([KEPT, *(Candidate(recipe, p) for recipe in RECIPES for p in ("aten", "emulated"))])
SYMBOLS = [sympy.Symbol(text, integer=True, positive=True) for text in ("s0", "s77", "s0*s1 + 3")]
sizes = st.integers(0, 2**40) | st.sampled_from([*SYMBOLS, 2 * SYMBOLS[0], 26 * SYMBOLS[1]])
sites = st.builds(
    lambda key, role, M, N, K, dtype, source: Site(
        f"{key}#0:{role}", "mm", role, sympy.Integer(1), *map(sympy.sympify, (M, N, K)), dtype, key, source
    ),
    names,
    st.sampled_from(["output", "grad_input", "grad_weight"]),
    sizes,
    sizes,
    sizes,
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64]),
    names,
)
decisions = st.builds(
    lambda site, chosen, reason, known, out, starts: Decision(
        site,
        chosen,
        reason,
        known,
        tuple(out.items()),
        tuple(Range(rows, each) for rows, each in sorted({**starts, 0: KEPT}.items())) if starts else (),
    ),
    sites,
    candidates,
    names,
    st.dictionaries(names, scores, max_size=3),
    st.dictionaries(candidates, names, max_size=3),
    st.dictionaries(st.integers(0, 2**40), candidates, max_size=3),
)
plans = st.builds(
    lambda target, found, origin: Plan(target, {d.site.key: d for d in found}, origin),
    st.sampled_from(sorted(TARGETS)),
    st.lists(decisions, max_size=4),
    names,
)


@settings(max_examples=60, deadline=None)
@given(plans)
def test_a_plan_comes_back_byte_for_byte(plan):
    text = plan.to_json()
    again = parse_plan(text)
    assert again.to_json() == text and again.fingerprint == plan.fingerprint
    assert again.decisions.keys() == plan.decisions.keys()
    assert [d.site for d in again.decisions.values()] == [d.site for d in plan.decisions.values()]
    assert [d.chosen for d in again.decisions.values()] == [d.chosen for d in plan.decisions.values()]


def test_a_saved_plan_is_the_plan(tmp_path):
    PLAN.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == load_plan(str(tmp_path / "plan.json")) == PLAN
    assert (tmp_path / "plan.json").read_text().endswith("\n")


def test_numbers_that_are_not_finite_are_still_json():
    score = Score(math.inf, -math.inf, math.inf, None)
    plan = Plan("h100", {"a#0:output": Decision(site("a#0:output"), KEPT, "", {"bf16/aten": score})})
    json.loads(plan.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert parse_plan(plan.to_json()) == plan


def test_the_fingerprint_is_of_what_makes_the_graph():
    for change in ({"origin": "elsewhere"}, {"raced": "2.00x"}, {"pins": {"hardware": "a cpu"}}):
        assert replace(PLAN, **change).fingerprint == PLAN.fingerprint


def test_every_decision_counts_for_the_fingerprint():
    text = PLAN.to_json()
    for old, new in (("int8_rowwise/aten", "bf16/aten"), ('"cpu"', '"h100"'), ("2.00x", "2.01x"), ('"48"', '"64"')):
        assert old in text
        assert parse_plan(text.replace(old, new)).fingerprint != PLAN.fingerprint


# ---------------------------------------------------------------- files that are no plans


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "not a loka plan"),
        ("3", "not a loka plan"),
        ("null", "not a loka plan"),
        ('{"format": "onnx"}', "not a loka plan"),
        (PLAN.to_json().replace('"version": 2', '"version": 1'), "plan version 1, this loka reads 2"),
        (PLAN.to_json().replace('"version": 2', '"version": null'), "plan version"),
        (PLAN.to_json().replace('"target": "cpu"', '"target": "abacus"'), "unknown target 'abacus'"),
        (PLAN.to_json().replace('"target": "cpu"', '"target": ["cpu"]'), "unknown target"),
        (PLAN.to_json().replace("int8_rowwise/aten", "int3/aten"), "unknown recipe 'int3'"),
        (PLAN.to_json().replace('"float32"', '"Tensor"'), "no dtype"),
        (PLAN.to_json().replace('"float32"', '"float33"'), "damaged"),
        (PLAN.to_json().replace('"batch"', '"bunch"'), "damaged"),
        (PLAN.to_json().replace('"mere"', '"more"'), "damaged"),
        (PLAN.to_json().replace('"keep"', '"keep/aten"'), "keep has none"),
        (PLAN.to_json().replace("int8_rowwise/aten", "int8_rowwise"), "has a provider"),
        (PLAN.to_json().replace("40.25", "NaN"), "NaN is not JSON"),
        (PLAN.to_json().replace("40.25", '"40.25"'), "expected a number"),
        (PLAN.to_json().replace('"time_us": 10.0', '"time_us": true'), "expected a number"),
        (PLAN.to_json().replace('"grad_input"', '"grad_bias"'), "no site"),
        (PLAN.to_json()[:400], "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_file_that_is_no_plan_says_why(text, message, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PlanError, match=message) as error:
        load_plan(tmp_path / "plan.json")
    assert "plan.json" in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "binary").write_bytes(b"\x80\x02\xff\xfe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "binary"):
        with pytest.raises(PlanError, match="cannot read plan"):
            load_plan(path)


def paths_of(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_of(inner, (*path, key))


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(list(paths_of(json.loads(PLAN.to_json())))), anything, st.booleans())
def test_whatever_is_changed_is_a_plan_error_or_still_a_usable_plan(path, value, remove):
    body = json.loads(PLAN.to_json())
    if not path:
        body = value
    else:
        place = body
        for key in path[:-1]:
            place = place[key]
        if remove:
            del place[path[-1]]
        else:
            place[path[-1]] = value
    try:
        plan = parse_plan(json.dumps(body))
    except PlanError:
        return
    # What was accepted works in every way a plan is used, and says the same again.
    assert parse_plan(plan.to_json()).to_json() == plan.to_json()
    assert plan.fingerprint and repr(plan)
    for decision in plan.decisions.values():
        assert plan.find(decision.site) is None or plan.find(decision.site).site.role == decision.site.role
        assert isinstance(decision.reason, str) and str(decision.site.shape)
        assert decision.chosen.recipe in (KEEP, *RECIPES)
        assert decision.score.mere >= 0 or decision.score.mere < 0  # a number, not NaN, not a string
        assert decision.before.time_us is None or decision.before.time_us > -math.inf


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(PLAN.to_json()) - 1), st.characters(max_codepoint=0x7F))
def test_one_wrong_character_is_a_plan_error_or_another_plan(position, character):
    text = PLAN.to_json()
    with suppress(PlanError):
        parse_plan(text[:position] + character + text[position + 1 :]).to_json()


# ---------------------------------------------------------------- finding a decision


def test_a_batch_size_is_no_part_of_a_decision():
    s = sympy.Symbol("s0", integer=True, positive=True)
    for m in (1, 7, 4096, s):
        assert PLAN.find(site(M=m)) is PLAN.decisions["fc#0:output"]


@pytest.mark.parametrize("other", [{"N": 49}, {"K": 31}])
def test_a_gemm_of_another_size_is_another_gemm(other):
    assert PLAN.find(site(**other)) is None


def test_other_roles_dtypes_and_keys_are_not_found():
    assert PLAN.find(replace(site(), dtype=torch.bfloat16)) is None
    assert PLAN.find(replace(site(), role="grad_input")) is None
    assert PLAN.find(site("fc#1:output")) is None


def test_the_contraction_of_a_weight_gradient_is_the_batch():
    known = site("fc#0:grad_weight", M=48, N=32, K=64)
    plan = Plan("cpu", {known.key: Decision(known, KEPT, "")})
    assert plan.find(site("fc#0:grad_weight", M=48, N=32, K=4096)) is not None
    assert plan.find(site("fc#0:grad_weight", M=47, N=32, K=64)) is None


def test_a_second_use_of_a_key_is_told_by_its_source():
    first, second = site(source="model.py:3"), site(source="model.py:9")
    plan = Plan("cpu", {first.key: Decision(first, KEPT, "1"), f"{first.key}@model.py:9": Decision(second, KEPT, "2")})
    assert plan.find(first).reason == "1" and plan.find(second).reason == "2"
    assert plan.find(site(source="model.py:30")).reason == "1"  # lines move: the key alone still finds one
    other = site(source="model.py:9", N=8)
    assert plan.find(other) is None


def test_a_demoted_decision_keeps_its_history():
    decision = PLAN.decisions["fc#0:output"].demoted("too coarse")
    assert decision.chosen == KEPT and decision.reason == "too coarse"
    assert decision.rejected[-1] == (Candidate("int8_rowwise", "aten"), "too coarse")
    plan = PLAN.with_decision(decision)
    assert plan.lowered == [] and len(PLAN.lowered) == 1 and list(plan.decisions) == list(PLAN.decisions)
    assert parse_plan(plan.to_json()) == plan
