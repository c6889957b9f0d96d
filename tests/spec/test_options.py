"""Options: every good value survives, every bad one is an error that says what was meant."""

import copy
import math
import pickle
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loka_compile.spec.options import MOD_NAMES, MODES, Options, OptionsError, pass_names
from loka_compile.spec.plan import Plan
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.target import TARGETS

NAMES = [f.name for f in fields(Options)]


@dataclass
class Profile: ...


def test_defaults():
    options = Options()
    assert options == Options.of() == Options.of(mode="default", options={})
    assert options.target == "cpu"
    assert options.recipes == tuple(RECIPES)
    assert options.passes == dict.fromkeys(pass_names(), True)
    assert options.mode is None


def test_values_are_normalised():
    options = Options.of(
        options={"plan": Path("a/plan.json"), "recipes": ["bf16"], "max_mere": 1, "passes": {"lower": False}}
    )
    assert options.plan == "a/plan.json"
    assert options.recipes == ("bf16",)
    assert isinstance(options.max_mere, float)
    assert options.passes == {name: name != "lower" for name in pass_names()}


def test_objects_pass_through():
    plan, profile = Plan("cpu", {}), Profile()
    assert Options(plan=plan).plan is plan
    assert Options(profile=profile).profile is profile


def test_mode_comes_from_either_side():
    assert Options.of(mode="max-autotune") == Options.of(options={"mode": "max-autotune"})
    assert Options.of("max-autotune", {"mode": "max-autotune"}).mode == "max-autotune"
    with pytest.raises(OptionsError, match="given twice"):
        Options.of("max-autotune", {"mode": "reduce-overhead"})


def test_frozen_all_the_way():
    options = Options()
    with pytest.raises(FrozenInstanceError):
        options.target = "h100"
    with pytest.raises(TypeError, match="frozen"):
        options.passes["lower"] = False
    with pytest.raises(TypeError, match="frozen"):
        options.inductor.update(max_autotune=True)


def test_given_containers_are_copied():
    passes = {"lower": False}
    options = Options(passes=passes)
    passes["lower"] = True
    assert options.passes["lower"] is False


BAD = [
    ({"targt": "cpu"}, "unknown option 'targt'.*'target'"),
    ({"max-mere": 0.1}, "unknown option 'max-mere'.*'max_mere'"),
    ({3: 4}, "unknown option 3"),
    ({"max_autotune": True}, "config of Inductor.*'inductor'"),
    ({"target": "H100"}, "target: expected one of cpu.*got 'H100'.*nearest: 'h100'"),
    ({"target": None}, "target: expected one of"),
    ({"target": ["cpu"]}, "target: expected one of"),
    ({"recipes": "bf16"}, r"recipes: expected a tuple of names; write \('bf16',\)"),
    ({"recipes": ("fp8_row",)}, "nearest: 'fp8_rowwise'"),
    ({"recipes": ("bf16", "bf16")}, "each name once"),
    ({"recipes": {"bf16"}}, "a tuple of names"),
    ({"recipes": None}, "a tuple of names"),
    ({"recipes": ([],)}, "recipes: expected one of"),
    ({"max_mere": "0.2"}, "max_mere: expected a number of at least 0; got '0.2'"),
    ({"max_mere": -0.1}, "at least 0"),
    ({"max_mere": math.nan}, "at least 0"),
    ({"min_speedup": True}, "min_speedup: expected a number"),
    ({"min_sqnr_db": None}, "min_sqnr_db: expected a number"),
    ({"max_output_error": 1j}, "max_output_error: expected a number"),
    ({"passes": {"lowr": True}}, "nearest: 'lower'"),
    ({"passes": {"lower": 1}}, r"passes\['lower'\]: expected True or False; got 1"),
    ({"passes": ("lower",)}, "passes: expected a mapping"),
    ({"passes": "lower"}, "passes: expected a mapping"),
    ({"mods": ("NoBias",)}, "nearest: 'no_bias'"),
    ({"mods": "NoBias"}, r"write \('NoBias',\)"),
    ({"compskip": "every-other"}, "compskip: expected 'alternate', a schedule or None; got 'every-other'"),
    ({"compskip": 2}, "compskip: expected 'alternate'"),
    ({"inductor": {"max_autotun": True}}, "unknown config 'max_autotun'.*nearest: 'max_autotune'"),
    ({"inductor": {"joint_custom_pre_pass": None}}, "loka's own passes"),
    ({"inductor": {"post_grad_custom_pre_pass": None}}, "loka's own passes"),
    ({"inductor": None}, "inductor: expected a mapping"),
    ({"mode": "max-autotuned"}, "nearest: 'max-autotune'"),
    ({"mode": 1}, "mode: expected one of"),
    ({"plan": ""}, "plan: expected a path"),
    ({"plan": b"plan.json"}, "plan: expected a path"),
    ({"plan": {}}, "plan: expected a path"),
    ({"plan": Profile()}, "plan: expected a path, a Plan or None"),
    ({"profile": Plan("cpu", {})}, "profile: expected a path, a Profile or None"),
    ({"plan": "p.json", "profile": "p.safetensors"}, "not both"),
    ("target", "options: expected a mapping"),
    ([("target", "cpu")], "options: expected a mapping"),
]


@pytest.mark.parametrize("options, message", BAD, ids=[repr(options) for options, _ in BAD])
def test_bad_options_raise(options, message):
    with pytest.raises(OptionsError, match=message):
        Options.of(options=options)


def test_inductor_configs_pass_through():
    assert Options(inductor={"max_autotune": True}).inductor == {"max_autotune": True}


@given(st.text() | st.integers() | st.sampled_from(NAMES).map(str.upper), st.none() | st.text())
def test_an_unknown_name_never_passes(name, value):
    if name not in NAMES:
        with pytest.raises(OptionsError, match="unknown option"):
            Options.of(options={name: value})


@given(st.sampled_from(NAMES), st.text() | st.integers(max_value=-1) | st.binary() | st.booleans())
def test_a_bad_value_never_passes(name, value):
    try:
        options = Options.of(options={name: value})
    except OptionsError as error:
        assert name in str(error)
    else:  # the few good ones among them: a path, a known name, a schedule of none, a switch
        assert isinstance(value, bool if name in ("race", "guard_segments", "lower_choices") else str)
        value = None if value is False else value
        assert (getattr(options, name) or None) == (value or None)


numbers = st.floats(min_value=0, allow_nan=False) | st.integers(0, 100)
some_options = st.fixed_dictionaries(
    {},
    optional={
        "plan": st.none() | st.text(min_size=1),
        "target": st.sampled_from(sorted(TARGETS)),
        "recipes": st.lists(st.sampled_from(list(RECIPES)), unique=True),
        "max_mere": numbers,
        "min_sqnr_db": numbers,
        "min_speedup": numbers,
        "max_output_error": numbers,
        "max_gradient_error": numbers,
        "passes": st.dictionaries(st.sampled_from(pass_names()), st.booleans()),
        "mods": st.lists(st.sampled_from(MOD_NAMES), unique=True),
        "inductor": st.dictionaries(st.sampled_from(["max_autotune", "triton.cudagraphs"]), st.booleans()),
        "mode": st.none() | st.sampled_from(MODES),
    },
)


@given(some_options)
def test_round_trip(given_options):
    options = Options.of(options=given_options)
    for again in (
        Options.of(options=options.as_dict()),
        Options.of(options=options),
        replace(options),
        pickle.loads(pickle.dumps(options)),
        copy.deepcopy(options),
    ):
        assert again == options
