"""The arguments that commands share, and how they are read: a model by its factory's name, options, files.

A wrong argument raises CommandError, which the command prints as one line. Torch is imported where it is needed only.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Commands = Any
"""The type that argparse's add_subparsers returns; it has no public name."""


class CommandError(Exception):
    """A message for the person at the terminal."""


def example(spec: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Model, positional and keyword inputs from MODULE:FACTORY."""
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        raise CommandError(f"expected MODULE:FACTORY, such as mymodel:example; got {spec!r}")
    find_here()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise CommandError(f"cannot import {module_name}: {one_line(error)}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise CommandError(f"{module_name} has no callable {name!r}")
    try:
        made = factory()
    except Exception as error:
        raise CommandError(f"{spec} failed: {one_line(error)}") from error
    if not (isinstance(made, tuple) and len(made) == 2 and callable(made[0])):
        raise CommandError(f"{spec} must return (model, inputs); it returned {_kind(made)}")
    model, inputs = made
    if isinstance(inputs, Mapping):
        return model, (), dict(inputs)
    if isinstance(inputs, tuple):
        return model, inputs, {}
    raise CommandError(f"{spec}: inputs must be a tuple, or a dict of keywords; got {_kind(inputs)}")


def add_model(command: argparse.ArgumentParser) -> None:
    """The arguments of every command that compiles a model: which one, for what, and under which plan."""
    command.add_argument(
        "factory",
        metavar="MODULE:FACTORY",
        help="a callable without arguments that returns (model, inputs); inputs are a tuple, or a dict of keywords",
    )
    add_source(command)
    command.add_argument("--json", metavar="FILE", help="write the result there too")


def add_source(command: argparse.ArgumentParser) -> None:
    """Whether a step of training is compiled, and where the plan comes from."""
    command.add_argument("--training", action="store_true", help="compile forward and backward")
    source = command.add_mutually_exclusive_group()
    source.add_argument("--plan", metavar="FILE", help="follow this plan")
    source.add_argument("--profile", metavar="FILE", help="make the plan from this profile")


def find_here() -> None:
    """Modules of the current directory, as `python -m` finds them."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options for torch.compile, checked here, so that a bad file or name is reported without compiling."""
    from loka_compile import Options, OptionsError

    options: dict[str, Any] = {"measure_calls": 0}  # there is one call
    if arguments.target:
        options["target"] = arguments.target
    try:
        Options(**options)
        if arguments.plan:
            options["plan"] = plan_in(arguments.plan)
        if arguments.profile:
            from loka_compile import ProfileError, load_profile

            try:
                options["profile"] = load_profile(arguments.profile)
            except ProfileError as error:
                raise CommandError(str(error)) from error
    except OptionsError as error:
        raise CommandError(str(error)) from error
    return options


def plan_in(path: str) -> Any:
    from loka_compile import PlanError, load_plan

    try:
        return load_plan(path)
    except PlanError as error:
        raise CommandError(str(error)) from error


def write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from error


def compiled_of(factory: str, options: dict[str, Any], training: bool) -> Any:
    """The model of a factory, compiled by loka and run once; in training with its backward."""
    model, args, kwargs = example(factory)

    import torch

    compiled = torch.compile(model, backend="loka", options=options)
    try:
        with torch.set_grad_enabled(training):
            out = compiled(*args, **kwargs)
            if training:
                backward(out)
    except CommandError:
        raise
    except Exception as error:
        error = getattr(error, "inner_exception", error)  # Dynamo wraps what a backend raises
        raise CommandError(f"compiling {factory} failed: {one_line(error)}") from error
    return compiled


def backward(out: Any) -> None:
    """The gradient of the sum of everything differentiable that the model returned."""
    losses = [tensor.sum() for tensor in _tensors(out) if tensor.requires_grad]
    if not losses:
        raise CommandError("--training: no output of the model requires a gradient")
    sum(losses[1:], losses[0]).backward()


def _tensors(value: Any) -> Iterator[Any]:
    if hasattr(value, "requires_grad"):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _kind(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"


def one_line(error: BaseException) -> str:
    """An error on one line: the whole message of one of loka's own; type, first line and place of any other."""
    if type(error).__module__.startswith("loka_compile."):
        return "; ".join(line.strip() for line in str(error).splitlines())
    first = str(error).strip().partition("\n")[0]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first}{where}"


def show(explanation: Any) -> None:
    """Print an explanation: in colour on a terminal, as plain text elsewhere."""
    if not sys.stdout.isatty():
        print(explanation)
        return
    from rich.console import Console

    Console().print(explanation)
