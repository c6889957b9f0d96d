"""All options of loka: one frozen dataclass, checked the moment it is made."""

import functools
import hashlib
import importlib.util
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from loka_compile.spec.checks import (
    FrozenDict,
    OptionsError,
    count,
    expected,
    mapping,
    names,
    nearest,
    number,
    one_of,
    switch,
)
from loka_compile.spec.compskip import CompSkip
from loka_compile.spec.error_budget import DEFAULT, ErrorBudget
from loka_compile.spec.plan import Plan
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.target import TARGETS

STAGES = ("simplify", "raising", "joint", "post_grad")
MOD_NAMES = ("no_bias", "block_norm", "hard_swish")
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
# Inductor's hooks that loka's own passes go in through.
RESERVED_INDUCTOR_KEYS = ("joint_custom_pre_pass", "post_grad_custom_pre_pass")
ON_OTHER_HARDWARE = ("refuse", "redispatch")


@functools.cache
def pass_names() -> tuple[str, ...]:
    """The passes that `passes` can switch off. One pass a file: these are the files' names in the stages' folders,
    because the passes themselves live in a layer above this one."""
    found = importlib.util.find_spec("loka_compile.passes")
    folders = [] if found is None else [Path(each) for each in found.submodule_search_locations or ()]
    return tuple(sorted(file.stem for each in folders for stage in STAGES for file in (each / stage).glob("[!_]*.py")))


@dataclass(frozen=True)
class Options:
    """The options of `torch.compile(model, backend="loka", options={...})`.

    Where decisions come from (one of the two; with neither, the first calls are measured):

    plan: a plan, or the path of its JSON file. The graph is rewritten exactly as it says.
    profile: a profile, or the path of its file. Dispatch makes the plan from it.
    on_other_hardware: what a plan comes to that was made on other hardware: "refuse" is an error; with "redispatch" a
        new one is made here from `profile`, which is given too then, and a warning shows what is decided otherwise.

    What may be chosen:

    target: name of the hardware the plan is for.
    recipes: names of the numeric formats to consider. None at all, `()`, keeps every site as it is.

    Budgets, per site; a candidate that misses one is rejected, and the reason is shown:

    guard_segments: a candidate that is safe over all rows and not for a segment that the profile knows is rejected
        too; False only says so.
    max_mere: highest mean relative error, a fraction (0.2 is 20 %); inf lifts the budget.
    min_sqnr_db: lowest signal to quantization noise ratio, in dB.
    lower_choices: GEMMs whose result decides a choice (which expert, which bucket: topk, argmax, a comparison) are
        candidates too. By default they are kept: a rounded result picks another one, which no error budget bounds.
    min_speedup: lowest time before / time after, a ratio; 0 accepts slower kernels too.
    min_source_quality: for a profile that knows its production traffic, the lowest agreement of its rows with that (1 -
        total variation of the feature that agrees least). Surely below: refused. Not surely above: flagged.
    race: a plan made here is compiled beside the unplanned graph, and kept only if it is not slower; uniform recipes
        that come near it race too. The verdict is remembered on disk: one to three more compilations, once.

    Without plan and profile (online):

    measure_calls: calls of a graph that run op by op, measured, before it is planned and compiled; 0 plans from one
        look at the first batch, forward only, and does not watch afterwards.
    max_probe_overhead: most that measuring again may add to the time of the calls since, a fraction; 0 never does.

    Budget, for the whole model:

    max_output_error: highest relative RMS error of the compiled model's outputs on the probe's batch, a
        fraction; sites are demoted, worst first, until it holds; inf lifts the budget.
    max_gradient_error: the same for a training step's gradients, over all of them and, on average, over each tensor's.
        A ReLU makes steps of small errors: bf16 alone is off by 3 to 7 % in networks of several.

    What happens to the graph:

    passes: pass name -> on or off. Passes not named stay on.
    mods: changes of the model itself, by name: no_bias, block_norm, hard_swish. The model computes something else with
        them, and has to be trained with them.
    compskip: a schedule of skipped work: "alternate" (Kunlun's), a CompSkip, a mapping of its fields or its JSON. The
        model computes something else with it, and has to be trained with it.
    window: full self-attention becomes attention to the positions at most so far away: a whole number for all of them,
        or pattern of module paths -> whole number (`layers.*.attention`). The model computes something else with it.

    What Inductor gets:

    inductor: Inductor config name -> value, applied on top of `mode`.
    mode: torch.compile's own mode; "default" is None.
    """

    plan: Any = None
    profile: Any = None
    on_other_hardware: str = "refuse"
    target: str = "cpu"
    recipes: tuple[str, ...] = field(default_factory=lambda: tuple(RECIPES))
    guard_segments: bool = True
    min_source_quality: float = 0.9
    max_mere: float = DEFAULT.max_mere
    min_sqnr_db: float = DEFAULT.min_sqnr_db
    lower_choices: bool = False
    min_speedup: float = 1.05
    race: bool = True
    measure_calls: int = 3
    max_probe_overhead: float = 0.01
    max_output_error: float = 0.05
    max_gradient_error: float = 0.1
    passes: Mapping[str, bool] = field(default_factory=dict)
    mods: tuple[str, ...] = ()
    compskip: CompSkip | str | None = None
    window: int | Mapping[str, int] | None = None
    inductor: Mapping[str, Any] = field(default_factory=dict)
    mode: str | None = None

    def __post_init__(self) -> None:
        checked = {
            "plan": _artifact("plan", self.plan, "Plan", isinstance(self.plan, Plan)),
            "profile": _artifact("profile", self.profile, "Profile", _is_profile(self.profile)),
            "on_other_hardware": one_of("on_other_hardware", self.on_other_hardware, ON_OTHER_HARDWARE),
            "target": one_of("target", self.target, TARGETS),
            "recipes": names("recipes", self.recipes, RECIPES),
            "guard_segments": switch("guard_segments", self.guard_segments),
            "min_source_quality": number("min_source_quality", self.min_source_quality),
            "max_mere": number("max_mere", self.max_mere),
            "min_sqnr_db": number("min_sqnr_db", self.min_sqnr_db),
            "lower_choices": switch("lower_choices", self.lower_choices),
            "min_speedup": number("min_speedup", self.min_speedup),
            "race": switch("race", self.race),
            "measure_calls": count("measure_calls", self.measure_calls),
            "max_probe_overhead": number("max_probe_overhead", self.max_probe_overhead),
            "max_output_error": number("max_output_error", self.max_output_error),
            "max_gradient_error": number("max_gradient_error", self.max_gradient_error),
            "passes": _switches("passes", self.passes, pass_names()),
            "mods": names("mods", self.mods, MOD_NAMES),
            "compskip": _compskip(self.compskip),
            "window": _window(self.window),
            "inductor": _inductor(self.inductor),
            "mode": None if self.mode in (None, "default") else one_of("mode", self.mode, MODES),
        }
        redispatch = checked["on_other_hardware"] == "redispatch"
        if checked["plan"] is not None and checked["profile"] is not None and not redispatch:
            raise OptionsError("plan, profile: a plan already holds every decision; give one, not both")
        if redispatch and checked["plan"] is not None and checked["profile"] is None:
            raise OptionsError("on_other_hardware: expected a profile beside the plan to dispatch anew from; got none")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, mode: str | None = None, options: "Mapping[str, Any] | Options | None" = None) -> "Options":
        """The options from torch.compile's own two keyword arguments.

        torch.compile takes `mode` or `options`, not both; beside other options, `mode` goes in among them.
        """
        given = options.as_dict() if isinstance(options, cls) else {} if options is None else options
        if not isinstance(given, Mapping):
            raise OptionsError(expected("options", "a mapping of option names to values", given))
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                raise OptionsError(_unknown_option(name, known))
        if mode is not None:
            if given.get("mode") not in (None, mode):
                raise OptionsError(f"mode: given twice, as {mode!r} and in the options as {given['mode']!r}")
            given = {**given, "mode": mode}
        return cls(**given)

    @property
    def error_budget(self) -> ErrorBudget:
        return ErrorBudget(self.max_mere, self.min_sqnr_db)

    @property
    def fingerprint(self) -> str:
        """Digest of everything but plan and profile, which have their own; part of every cache key."""
        rest = sorted((k, v) for k, v in self.as_dict().items() if k not in ("plan", "profile"))
        return hashlib.sha256(repr(rest).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Every option by name; `Options.of(options=o.as_dict()) == o`."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _unknown_option(name: Any, known: list[str]) -> str:
    message = f"unknown option {name!r}{nearest(name, known)}; the options are {', '.join(known)}"
    if name in _inductor_config_keys():
        message += f". It is a config of Inductor: write options={{'inductor': {{{name!r}: ...}}}}"
    return message


def _switches(name: str, value: Any, valid: tuple[str, ...]) -> FrozenDict:
    for key, on in mapping(name, "a mapping of pass names to True or False", value).items():
        one_of(name, key, valid)
        if not isinstance(on, bool):
            raise OptionsError(expected(f"{name}[{key!r}]", "True or False", on))
    return FrozenDict({key: value.get(key, True) for key in valid})


def _compskip(value: Any) -> CompSkip | str | None:
    try:
        return CompSkip.of(value)
    except ValueError as error:
        raise OptionsError(f"compskip: {error}") from error


def _window(value: Any) -> FrozenDict | None:
    """Pattern of module paths -> window; `**` are all modules."""
    if value is None:
        return None
    given = value if isinstance(value, Mapping) else {"**": value}
    what = "a whole number of at least 1, or a mapping of module paths to such numbers"
    for pattern, window in given.items():
        if not isinstance(pattern, str) or count("window", window) < 1:
            raise OptionsError(expected("window", what, value))
    if not given:
        raise OptionsError(expected("window", what, value))
    return FrozenDict(given)


def _is_profile(value: Any) -> bool:
    """By its class's name: the class lives in a layer above this one."""
    return "Profile" in (each.__name__ for each in type(value).__mro__)


def _artifact(name: str, value: Any, type_name: str, is_one: bool) -> Any:
    """A path, or the object itself."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None or (isinstance(value, str) and value) or is_one:
        return value
    raise OptionsError(expected(name, f"a path, a {type_name} or None", value))


def _inductor(value: Any) -> FrozenDict:
    given = mapping("inductor", "a mapping of Inductor config names to values", value)
    for key in given:
        if key in RESERVED_INDUCTOR_KEYS:
            raise OptionsError(f"inductor: {key!r} is how loka's own passes go in, so it cannot be set")
        valid = _inductor_config_keys()
        if key not in valid:
            raise OptionsError(f"inductor: unknown config {key!r}{nearest(key, valid)}")
    return FrozenDict(given)


def _inductor_config_keys() -> Iterable[str]:
    from loka_compile.compat import inductor_config_keys  # loads Inductor, so only when it is needed

    return inductor_config_keys()
