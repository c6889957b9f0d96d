"""What torch.compile composes with, beside the matrix: each works, or goes to Inductor with the reason in explain."""

from __future__ import annotations

import contextlib
import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

import loka_compile as loka
from loka_compile.online.pace import AT_LEAST

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "op_by_op")

OPTIONS = {"recipes": ("int8_rowwise",), "min_speedup": 0, "race": False}
"""Everything within the budgets is lowered, on any processor."""
CALLS = 6


@pytest.fixture
def net(tmp_path, monkeypatch):
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))


def compiled_of(call, **options):
    return torch.compile(call, backend="loka", options={**OPTIONS, **options})


def near(out, expected):
    return float((out - expected).norm()) < 0.2 * float(expected.norm())


def lowered(compiled):
    """Of how many sites, in the plans that these graphs run under. A kernel is each graph's own choice, by the clock:
    weights that come as inputs are packed at every call."""
    plans = loka.plans(compiled).values()
    keys = {key for plan in plans for key in plan.decisions}
    kept = {key for plan in plans for key, decision in plan.decisions.items() if not decision.lowered}
    return len(keys - kept), len(keys)


def test_functional_call(net):
    others = {name: torch.randn_like(p) * 0.2 for name, p in net.named_parameters()}
    compiled = compiled_of(lambda weights, x: torch.func.functional_call(net, weights, (x,)))
    with torch.no_grad():
        for weights in (dict(net.named_parameters()), others):
            for _ in range(CALLS):
                x = torch.randn(64, 32)
                assert near(compiled(weights, x), torch.func.functional_call(net, weights, (x,)))
    assert lowered(compiled) == (2, 2)


def test_vmap(net):
    compiled = compiled_of(torch.vmap(net))
    with torch.no_grad():
        for _ in range(CALLS):
            x = torch.randn(4, 16, 32)
            assert near(compiled(x), net(x))
    assert lowered(compiled) == (2, 2)


def test_per_sample_gradients(net):
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(net, weights, (x,)).square().mean()

    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))
    compiled = compiled_of(per_sample)
    for _ in range(CALLS):
        x = torch.randn(16, 32)
        for name, gradient in compiled(weights, x).items():
            assert near(gradient, per_sample(weights, x)[name])
    assert lowered(compiled) == (3, 3)  # a sample's gradients of weights are outer products


def test_saved_tensor_hooks(net):
    """What is saved goes to the host and comes back: as many tensors at every call under a plan, so none of these calls
    is measured again, however cheap that is."""
    compiled = compiled_of(net, max_probe_overhead=1.0)
    packed, unpacked, counts = [], [], []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(0) or t, lambda t: unpacked.append(0) or t)
    for _ in range(3 + AT_LEAST + CALLS):
        x = torch.randn(64, 32, requires_grad=True)
        before = len(packed)
        with hooks:
            out = compiled(x)
        counts.append(len(packed) - before)
        (gradient,) = torch.autograd.grad(out.square().sum(), x)
        (expected,) = torch.autograd.grad(net(x).square().sum(), x)
        assert near(gradient, expected)
    assert counts == [counts[0]] * 3 + [counts[3]] * (AT_LEAST + CALLS)
    assert len(packed) == len(unpacked)
    assert lowered(compiled) == (6, 6)


def test_nested_tensors(net):
    compiled = compiled_of(net)
    with torch.no_grad():
        for lengths in ((3, 5), (4, 2)) * 3:
            rows = [torch.randn(length, 32) for length in lengths]
            x = torch.nested.nested_tensor(rows, layout=torch.jagged)
            assert torch.allclose(compiled(x).values(), net(torch.cat(rows)), atol=1e-5)
    assert "whose memory cannot be told" in loka.explain(compiled).origin


def test_compiled_autograd_of_a_function(net):
    """Its graphs are found by their lines, and a backward that autograd traced has those of the forward."""

    def score(x):
        return net(x) * 2

    compiled, backward = compiled_of(score), compiled_of(lambda loss: loss.backward())
    with torch._dynamo.config.patch(compiled_autograd=True):
        for _ in range(2):
            x = torch.randn(64, 32, requires_grad=True)
            backward(compiled(x).square().sum())
            (expected,) = torch.autograd.grad(score(x).square().sum(), x)
            assert near(x.grad, expected)
    explained = loka.explain(compiled)
    assert "compiled autograd" in explained.origin
    assert len(explained.found) == 6, explained.found


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_function_around_distributed_training(net, group):
    """DistributedDataParallel breaks the graph, and the model's own are those of the function too."""

    class Own(nn.Module):  # Dynamo compiles no frames of torch's own modules
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x)

    spread = nn.parallel.DistributedDataParallel(Own())
    compiled = compiled_of(lambda x: spread(x) * 2)
    for _ in range(4):
        x = torch.randn(64, 32, requires_grad=True)
        out = compiled(x)
        assert near(out, net(x) * 2)
        out.square().sum().backward()
    assert lowered(compiled) == (6, 6)


def test_a_collective_in_the_graph(net, group):
    import torch.distributed._functional_collectives as collectives

    def step(x):
        hidden = net[1](net[0](x))
        return net[2](collectives.all_reduce(hidden, "sum", dist.group.WORLD))

    compiled = compiled_of(step)
    with torch.no_grad():
        for _ in range(CALLS):
            x = torch.randn(64, 32)
            assert near(compiled(x), net(x))
    assert lowered(compiled) == (2, 2)


@pytest.mark.parametrize("stance", ["force_eager", "default"])
def test_autocast_and_a_forced_stance(net, stance):
    compiled = compiled_of(net)
    context = torch.compiler.set_stance(stance) if stance != "default" else contextlib.nullcontext()
    with torch.no_grad(), context, torch.autocast("cpu", torch.bfloat16):
        for _ in range(CALLS):
            x = torch.randn(64, 32)
            assert near(compiled(x).float(), net(x).float())


@torch._functorch.config.patch(donated_buffer=True)
def test_a_backward_for_each_task(net):
    """Gradients of several losses through one graph, which is retained."""
    compiled = compiled_of(net)
    for _ in range(CALLS):
        x, weight = torch.randn(64, 32), net[0].weight
        found, expected = (
            [torch.autograd.grad(out[:, task].square().mean(), weight, retain_graph=True)[0] for task in range(2)]
            for out in (compiled(x), net(x))
        )
        assert all(map(near, found, expected))
    assert lowered(compiled)[0] > 0


@pytest.mark.parametrize("training", [False, True])
def test_other_defaults_for_new_tensors(net, training):
    """A default type and a default device are the model's: what is measured and planned is in float32, on a CPU."""
    compiled, expected = compiled_of(net), copy.deepcopy(net)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        for seed in range(CALLS):
            generator = torch.Generator("cpu").manual_seed(seed)
            x = torch.randn(64, 32, generator=generator, dtype=torch.float32, device="cpu")
            with torch.set_grad_enabled(training):
                out = compiled(x)
            assert near(out, expected(x))
            if training:
                out.square().mean().backward()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert lowered(compiled)[0] > 0


def test_all_warnings_are_errors(net):
    """loka copies what PyTorch traces, which warns of a class of PyTorch's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", "Guards may run slower")  # Dynamo, of Python 3.13.0
        compiled = compiled_of(net)
        for _ in range(CALLS):
            compiled(torch.randn(64, 32)).square().mean().backward()
    assert lowered(compiled)[0] > 0


class Experts(nn.Module):
    """Each row goes to the expert that its gate picks: sizes that the data decide."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(32, 2), nn.ModuleList(nn.Linear(32, 32) for _ in range(2))

    def forward(self, x):
        picked, out = self.gate(x).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            (rows,) = torch.nonzero(picked == number, as_tuple=True)
            out = out.index_add(0, rows, expert(x[rows]))
        return out


@pytest.mark.parametrize("training", [False, True])
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_rows_that_the_data_pick(net, training):
    model = Experts()
    compiled = compiled_of(model)
    for _ in range(CALLS):
        x = torch.randn(64, 32)
        with torch.set_grad_enabled(training):
            out = compiled(x)
        assert near(out, model(x))
        if training:
            out.square().mean().backward()
    assert loka.explain(compiled).origin == "3 calls measured online"
