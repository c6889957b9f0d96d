"""Other engines give what the model gives, within what 8 bits lose, or say why they do not run."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch

from examples import engines
from examples.bench_dispatch import MODELS, TINY
from examples.engines.exportable import GatheredBag, exportable
from examples.models.samples import BAG, FIELDS, rows


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MODELS["dlrm"](FIELDS, BAG, **TINY["dlrm"]).eval()


def error(out, model, batch):
    wanted = copy.deepcopy(model).double()(*batch)
    return float((out.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", MODELS)
def test_an_exportable_model_gives_the_same(name):
    model, batch = MODELS[name](FIELDS, BAG, **TINY[name]).eval(), rows(16)
    batch[1][0] = 0  # a row without any
    plain = exportable(model)
    assert any(isinstance(each, GatheredBag) for each in plain.modules())
    torch.testing.assert_close(plain(*batch), model(*batch))


def test_a_bag_that_is_written_otherwise_is_refused():
    with pytest.raises(ValueError, match="expected a bag of the mean that skips an id"):
        GatheredBag(torch.nn.EmbeddingBag(4, 2, mode="sum"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("engine", engines.ENGINES)
def test_each_engine_runs_or_says_why(engine, model, tmp_path):
    batches, there = [rows(32), rows(32)], all(engines.versions(engine).values())
    if there and engine != "pytorch_dynamic":
        pytest.skip("test_each_engine_gives_what_the_model_gives has it, which is slow")
    for make in engines.makers(engine, model, batches, 1, tmp_path).values():
        if there:
            assert 1e-7 < error(make()(*batches[0]), model, batches[0]) < 0.05
        else:
            assert make.startswith("not installed: ") and "loka-compile[bench]" in make


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("engine", engines.ENGINES)
def test_each_engine_gives_what_the_model_gives(engine, model, tmp_path):
    if not all(engines.versions(engine).values()):
        pytest.skip(f"{engine} is not installed")
    batches = [rows(32), rows(32)]
    with torch.no_grad():
        for name, make in engines.makers(engine, model, batches, 1, tmp_path).items():
            if isinstance(make, str):
                assert importlib.util.find_spec("nncf") is None, make
                continue
            call = engines.Late(make)
            found = error(call(*batches[0]), model, batches[0])
            assert found < (1e-5 if "float32" in name else 0.05), name
            assert torch.equal(call(*batches[0]), call(*batches[0]))  # made once, and the same again


def test_what_no_variable_holds_to_avx2_says_so(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert not any(map(engines.not_held, engines.ENGINES))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    held = {engine: engines.not_held(engine) for engine in engines.ENGINES}
    assert not held["torchao_int8"] and not held["pytorch_dynamic"]
    assert "MLAS asks the processor itself" in held["onnx_runtime"] and "not held to AVX2" in held["openvino_runtime"]


def test_an_error_is_one_short_line():
    assert engines.reason_of(ValueError("a\n  b")) == "ValueError: a b"
    assert len(engines.reason_of(RuntimeError("x" * 1000))) < 200
