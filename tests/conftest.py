"""Shared by all tests: the checkout's root on the path, caches of this run's own, and what makes compiling cheap."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests find `examples` however pytest is started

# Before triton is imported: without a GPU, Triton kernels run in its interpreter. (What is compiled for a GPU that is
# not here is compiled in a process of its own.)
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# Before torch is imported. The workers of pytest-xdist inherit the caches of the process that started them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _caches = tempfile.mkdtemp(prefix="loka-tests-")
    atexit.register(shutil.rmtree, _caches, ignore_errors=True)
    os.environ["LOKA_CACHE_DIR"] = f"{_caches}/loka"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{_caches}/inductor"
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of compiler processes, each of which imports torch


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    _not_heard()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call():
    _not_heard()


def _not_heard():
    """Take pytest off torch.__trace. It listens to all loggers that do not propagate, and PyTorch prints every graph to
    this one as soon as somebody listens."""
    log = logging.getLogger("torch.__trace")
    for handler in [each for each in log.handlers if type(each).__module__ == "_pytest.logging"]:
        log.removeHandler(handler)


@pytest.fixture
def fresh_dynamo():
    """Nothing compiled before the test, nothing left after it."""
    import torch

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def no_grad():
    """As a compiled graph calls the ops that have no gradient."""
    import torch

    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch):
    """The tests have the machine for themselves, as far as loka can tell: times are kept however busy it is."""
    from loka_compile.dispatch import steady

    monkeypatch.setattr(steady, "_waits", lambda: {"this": 0})


@pytest.fixture
def quantized(monkeypatch):
    """The tensors quantized so far in the test, weights that are frozen among them."""
    from loka_compile.kernels.quantize import quantize as quantization

    tensors, original = [], quantization.reference

    def counting(x, *args):
        tensors.append(x)
        return original(x, *args)

    monkeypatch.setattr(quantization, "reference", counting)
    return tensors


@pytest.fixture
def op_by_op(monkeypatch):
    """loka's graphs run op by op after all passes: everything of a compilation but Inductor's code generation. They do
    not race eager, which would win against an interpreter."""
    import importlib

    from torch import fx

    from loka_compile import compat

    def compile_inductor(gm, inputs, *, joint, post_grad, uuid, patches):
        def inner(module, is_backward):
            post_grad(module.graph)
            module.recompile()
            return lambda *args: fx.Interpreter(module).run(*args)  # one a call: threads share nothing

        return compat.capture(gm, inputs, joint=joint, inner=inner, patches=patches), []

    monkeypatch.setattr(compat, "compile_inductor", compile_inductor)
    compilation = importlib.import_module("loka_compile.compilation")
    monkeypatch.setattr(compilation, "eager_or_compiled", lambda raced, *_: raced)


@pytest.fixture(scope="session")
def sites_of():
    """sites_of(fn, *args): the GEMMs of what torch.compile captures, by graph; of training where args need it."""
    import torch

    from examples.apart import APART
    from loka_compile import compat
    from loka_compile.graph.sites import annotate

    def sites(fn, *args, dynamic=None):
        found = []

        def backend(gm, inputs):
            joint = lambda graph: found.append([gemm.site for gemm in annotate(graph)])  # noqa: E731
            return compat.capture(gm, inputs, joint=joint, inner=lambda module, is_backward: module.forward)

        torch.compile(fn, backend=backend, dynamic=dynamic, **APART)(*args)
        return found

    return sites


@pytest.fixture(scope="session")
def plan_for(sites_of):
    """plan_for(recipe, fn, *args): a plan made by hand, every GEMM of `fn` in `recipe` (where `only` agrees)."""
    from loka_compile.spec.decision import KEPT, Candidate, Decision
    from loka_compile.spec.plan import Plan

    def plan(recipe, fn, *args, provider="", target="cpu", only=lambda site: True, dynamic=None):
        provider = provider or ("emulated" if recipe == "fp8_blockwise" else "aten")
        decisions = {}
        for graph in sites_of(fn, *args, dynamic=dynamic):
            for site in graph:
                chosen = Candidate(recipe, provider) if only(site) else KEPT
                key = site.key if site.key not in decisions else f"{site.key}@{site.source}"
                decisions[key] = Decision(site, chosen, "by hand")
        return Plan(target, decisions, origin="by hand")

    return plan
