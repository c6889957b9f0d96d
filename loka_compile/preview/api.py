"""loka.preview: asks the workers, and puts together what they say. Nothing here changes the calling process."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from typing import Any

from loka_compile.preview.model import Rates, rates_of
from loka_compile.preview.report import Preview
from loka_compile.preview.result import Side, side_from_json
from loka_compile.preview.transport import Source
from loka_compile.spec.target import TARGETS

GPUS = tuple(name for name, target in TARGETS.items() if target.device == "cuda")
SIDES = ("eager", "inductor", "loka", "torchao rowwise", "torchao tensorwise")
"""The sides that can be shown; torchao's only if it is installed."""


_HIDDEN = {"sides": {"CUDA_VISIBLE_DEVICES": ""}, "plan": {"CUDA_VISIBLE_DEVICES": ""}}
"""The GPUs a machine has are out of the way of pretending."""


class PreviewError(RuntimeError):
    """A preview that cannot be made at all: why, and what to do."""


def preview(
    model: Any,
    inputs: Any = (),
    target: str = "h100",
    training: bool = False,
    against: str = "inductor",
    *,
    sides: Sequence[str] | None = None,
    plan: Any = None,
    profile: Any = None,
    dtype: str = "bfloat16",
    calibration: str | os.PathLike[str] | None = None,
    measure: bool | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Preview:
    """The kernels that a GPU would run for one step of `model`, and their modelled times. No GPU is needed.

    model: a module or function, or "MODULE:FACTORY", which returns (model, inputs). inputs: a tuple, or a dict of
    keywords. target: one of GPUS. training: forward and backward, without the optimizer. against: the side the others
    are compared with. sides: of SIDES, all by default. plan, profile: loka's decisions, or what they are made from;
    with neither, the model is probed on the CPU with the given inputs. A plan that is given is followed to the letter;
    one that is made here races by modelled times first, and the result has the winner (`Preview.plan`). dtype: model
    and inputs are cast to it; "" does not. calibration: a file of shares of the peaks, measured on such a GPU
    (calibration.py). measure: kernel times on the GPU of this machine too; by default where it is the target.
    progress: told each stage.

    Times are modelled, unless the result says where they were measured. Raises ValueError for an unknown target or
    side, PreviewError where there is nothing to show, TransportError where the model cannot be brought into the worker.
    """
    source = Source(model) if isinstance(model, str) else Source("", model, *_split(inputs))
    [found] = previews(source, [target], training, against, sides, plan, profile, dtype, calibration, measure, progress)
    return found


def previews(
    source: Source,
    targets: Sequence[str],
    training: bool = False,
    against: str = "inductor",
    sides: Sequence[str] | None = None,
    plan: Any = None,
    profile: Any = None,
    dtype: str = "bfloat16",
    calibration: str | os.PathLike[str] | None = None,
    measure: bool | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> list[Preview]:
    """One for each target; the model is probed once. See `preview`."""
    wanted = _wanted(sides, against)
    for target in targets:
        if target not in GPUS:
            raise ValueError(f"target: expected one of {', '.join(GPUS)}, got {target!r}")
    packed = source.packed(values=False)
    plans: dict[str, str] = {}
    failure = ""
    if "loka" in wanted:
        plans, failure = _plans(source, targets, training, plan, profile, dtype, progress)
    found = []
    for target in targets:
        rates = _rates(target, calibration)
        request = {"source": packed, "dtype": dtype, "target": target, "training": training}
        asked = [name for name in wanted if name != "loka" or not failure]
        racing = {"plan": plans.get(target, ""), "rates": asdict(rates) if plan is None else None}
        done = list(_answers(request | racing, asked, progress))
        if failure:
            done.append({"name": "loka", "error": f"no plan: {failure}"})
        if not done:
            raise PreviewError(f"{source.label} on {target}: nothing to show")
        order = {name: place for place, name in enumerate(wanted)}
        answered = tuple(side_from_json(each) for each in sorted(done, key=lambda each: order[each["name"]]))
        memory = max(each.get("memory", 0) for each in done)
        own = {"plan": plans.get(target, ""), "options": {}}
        won: dict[str, Any] = next((each for each in done if "plan" in each), own)
        followed, options = won["plan"], won["options"]
        versions = {name: metadata.version(name) for name in ("torch", "triton")}
        made = Preview(
            source.label,
            target,
            training,
            against,
            answered,
            rates,
            memory,
            TARGETS[target].memory,
            versions,
            plan=followed,
            options=options,
        )
        request |= {"plan": followed, "options": options}
        found.append(_measured(made, source, request, measure, progress))
    return found


def _measured(made: Preview, source: Source, request: dict[str, Any], measure: bool | None, progress: Any) -> Preview:
    """With measured times, where this machine has such a GPU (or `measure` insists)."""
    from loka_compile.preview.calibration import with_times
    from loka_compile.preview.measure import gpu_here

    where = gpu_here(made.target) if measure is not False else ""
    if not where:
        if measure:
            raise PreviewError(f"measure: this machine has no {made.target}")
        return made
    names = [side.name for side in made.sides if side.kernels]
    real = request | {"job": "measure", "source": source.packed(values=True)}
    times = {each["name"]: each for each in _answers(real, names, progress)}

    def measured(side: Side) -> Side:
        seen = times.get(side.name, {})
        if "times" in seen:
            return with_times(side, [(name, us) for name, us in seen["times"]])
        return replace(side, notes=(*side.notes, f"not measured: {seen['error']}")) if seen else side

    return replace(made, sides=tuple(map(measured, made.sides)), where=where)


def _split(inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), inputs
    return (tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)), {}


def _wanted(sides: Sequence[str] | None, against: str) -> list[str]:
    installed = importlib.util.find_spec("torchao") is not None
    wanted = list(sides if sides is not None else (s for s in SIDES if installed or not s.startswith("torchao")))
    wanted = wanted if against in wanted else [against, *wanted]
    for name in wanted:
        if name not in SIDES:
            raise ValueError(f"sides: expected some of {', '.join(SIDES)}; got {name!r}")
        if name.startswith("torchao") and not installed:
            raise ValueError(f"{name}: torchao is not installed")
    return wanted


def _rates(target: str, calibration: str | os.PathLike[str] | None) -> Rates:
    if calibration is None:
        return rates_of(TARGETS[target])
    from loka_compile.preview.calibration import load_rates

    return load_rates(calibration, target)


def _plans(
    source: Source, targets: Sequence[str], training: bool, plan: Any, profile: Any, dtype: str, progress: Any
) -> tuple[dict[str, str], str]:
    """Plans as JSON by target; or why there are none."""
    if plan is not None:
        from loka_compile.spec.plan import Plan, load_plan

        made = plan if isinstance(plan, Plan) else load_plan(plan)
        return dict.fromkeys(targets, made.to_json()), ""
    if profile is not None:
        from loka_compile.dispatch.choose import dispatch
        from loka_compile.probe.profile import Profile, load_profile
        from loka_compile.spec.options import Options

        known = profile if isinstance(profile, Profile) else load_profile(profile)
        return {name: dispatch(known, options=Options(target=name)).to_json() for name in targets}, ""
    progress("probe on the CPU")
    request = {"job": "plan", "source": source.packed(values=True), "dtype": dtype, "training": training}
    answers = list(_ask(request | {"targets": list(targets)}))
    if answers and "plans" in answers[-1]:
        return answers[-1]["plans"], ""
    return {}, answers[-1].get("error", "the worker died") if answers else "the worker died"


def _answers(request: dict[str, Any], sides: Sequence[str], progress: Any) -> Iterator[dict[str, Any]]:
    """One answer a side. A worker that dies takes only the side with it that it was at."""
    left = list(sides)
    while left:
        running = left[0]
        for answer in _ask({"job": "sides"} | request | {"sides": left}):
            if "started" in answer:
                running = answer["started"]
                progress(f"{request['target']}: {running}")
            elif "name" in answer:
                left.remove(answer["name"])
                yield answer
            else:
                if answer.get("fatal") and running in left:
                    left.remove(running)
                    yield {"name": running, "error": answer["error"]}
                    break
                raise PreviewError(answer["error"])


def _ask(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The answers of a worker as they come; {"fatal": True, "error": ...} where it dies."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **_HIDDEN.get(request["job"], {})}
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [sys.executable, "-m", "loka_compile.preview.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=environment,
        )
        assert process.stdin and process.stdout
        try:
            try:
                with process.stdin as pipe:
                    pickle.dump(request, pipe)
            except BrokenPipeError:
                pass
            for line in process.stdout:
                yield json.loads(line)
            if process.wait():
                complaints.seek(0)
                last = complaints.read().decode(errors="replace").strip().splitlines()[-3:]
                yield {"fatal": True, "error": f"the worker died ({process.returncode}): {' | '.join(last)}"}
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
