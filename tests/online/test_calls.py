"""One callable a Dynamo graph: it measures, plans and switches inside, and Dynamo compiles as often as for Inductor."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import loka_compile as loka
from loka_compile.online.pace import AT_LEAST
from tests.online.calls import compiled_with, graphs, lowered, mlp, off

pytestmark = [pytest.mark.usefixtures("fresh_dynamo", "op_by_op", "home")]

# ---------------------------------------------------------------- nothing of Dynamo's is spent


@torch.no_grad()
def test_eight_batch_sizes_are_eight_graphs():
    model = mlp()
    compiled = compiled_with(model, dynamic=False)
    for _ in range(4):
        for rows in (2, 4, 8, 16, 32, 64, 128, 256):
            x = torch.randn(rows, 32)
            assert off(compiled(x), model(x)) < 0.05
    assert graphs() == counters["frames"]["ok"] == counters["frames"]["total"] == 8
    assert [len(plan.lowered) for plan in loka.plans(compiled).values()] == [2] * 8


@pytest.mark.parametrize("stance", ["fail_on_recompile", "eager_on_recompile"])
@torch.no_grad()
def test_a_stance_against_recompilation(stance):
    model, x = mlp(), torch.randn(64, 32)
    compiled = compiled_with(model)
    compiled(x)
    with torch.compiler.set_stance(stance):
        outs = [compiled(x) for _ in range(6)]
    assert graphs() == 1 and lowered(compiled) == 2
    assert torch.equal(outs[0], model(x)) and 0 < off(outs[-1], model(x)) < 0.05


@pytest.mark.parametrize("training", [False, True])
def test_one_entry_of_the_cache_is_enough(training):
    model, x = mlp(), torch.randn(64, 32)
    compiled = compiled_with(model, fullgraph=True)
    limit = torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True)
    with limit, torch.set_grad_enabled(training):
        for _ in range(6):
            out = compiled(x)
    assert graphs() == 1 and lowered(compiled) >= 2 and 0 < off(out, model(x)) < 0.05


@torch.no_grad()
def test_a_demotion_compiles_nothing_in_dynamo():
    model, x = mlp(), torch.randn(64, 32)
    options = {"recipes": ("fp8_tensorwise",), "target": "h100", "max_output_error": 0.2}
    compiled = compiled_with(model, **options, max_probe_overhead=1e6)
    for _ in range(5):
        compiled(x)
    assert lowered(compiled) == 2
    x[0, 0] = 1e9
    with warnings.catch_warnings(), torch.compiler.set_stance("fail_on_recompile"):
        warnings.simplefilter("ignore")
        for _ in range(3 * AT_LEAST):
            out = compiled(x)
    assert graphs() == 1 and lowered(compiled) < 2 and off(out, model(x)) < 0.2


# ---------------------------------------------------------------- sizes that are symbols


class Folded(nn.Module):
    """An even number of rows is folded: what is asked of the size is a guard."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(32, 32)

    def forward(self, x):
        x = self.fc(x)
        return x.view(-1, 64).sum(1) if x.shape[0] % 2 == 0 else x


def normed():
    return nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", [mlp, Folded, normed])
def test_any_number_of_rows(make, training):
    """As many graphs as the same program has without loka."""
    torch.manual_seed(0)
    model = make().train(training)
    twin, plain = copy.deepcopy(model), copy.deepcopy(model)
    compiled, without = compiled_with(twin, dynamic=True), torch.compile(plain, backend="aot_eager", dynamic=True)
    xs = [torch.randn(rows, 32) for rows in (64, 64, 64, 64, 64, 10, 7, 33, 512, *([] if training else [1]))]
    with torch.set_grad_enabled(training):
        for x in xs:
            without(x)
        expected = graphs()
        counters.clear()
        for x in xs:
            out, reference = compiled(x), model(x)
            assert off(out, reference) < 0.05
            if training:
                out.square().sum().backward(), reference.square().sum().backward()
    assert graphs() == expected and lowered(compiled) >= 1
    if training:
        mine, its = (torch.cat([p.grad.flatten() for p in each.parameters()]) for each in (twin, model))
        assert off(mine, its) < 0.1
    for mine, its in zip(twin.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(mine, its, rtol=0.05, atol=0.01)


@torch.no_grad()
def test_numbers_that_are_symbols():
    """Dynamo makes a tensor of a float that changes, and a symbol of an int."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(32, 32)

        def forward(self, x, scale, times):
            return self.fc(x) * scale + times

    model, x = Scaled(), torch.randn(16, 32)
    compiled = compiled_with(model, dynamic=True)
    for number in range(8):
        assert off(compiled(x, 1.5 + number, 3 + number), model(x, 1.5 + number, 3 + number)) < 0.05
    assert lowered(compiled) == 1


# ---------------------------------------------------------------- composition


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("outside_first", [False, True])
def test_the_users_checkpoints(reentrant, outside_first):
    model = mlp()
    compiled = compiled_with(model, max_probe_overhead=1e6)
    for step in range(AT_LEAST + 10):
        x = torch.randn(64, 32, requires_grad=True)
        inside = step > 1 or not outside_first
        out = checkpoint(compiled, x, use_reentrant=reentrant) if inside else compiled(x)
        out.square().sum().backward()
        mine, model[0].weight.grad = model[0].weight.grad.clone(), None
        model(x).square().sum().backward()
        assert off(mine, model[0].weight.grad) < 0.1
        model.zero_grad()
    # A forward without gradients may take other kernels than one that is trained.
    assert all(len(plan.lowered) >= 2 for plan in loka.plans(compiled).values())


def test_microbatches_inside_of_checkpoints_run_what_they_began_with():
    """All forwards before all backwards: the plan is made between the two."""
    model = mlp()
    compiled = compiled_with(model)
    outs = [checkpoint(compiled, torch.randn(64, 32, requires_grad=True), use_reentrant=False) for _ in range(6)]
    for out in outs:
        out.square().sum().backward()
    assert lowered(compiled) >= 2


def test_under_deterministic_algorithms_nothing_is_learned():
    model, x = mlp(), torch.randn(64, 32)
    torch.use_deterministic_algorithms(True)
    try:
        compiled = compiled_with(model)
        for _ in range(5):
            out = compiled(x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(out, model(x)) and "deterministic" in loka.explain(compiled).origin


@pytest.mark.parametrize("region", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), torch.no_grad])
def test_regions_around_the_call(region):
    model, x = mlp(), torch.randn(64, 32)
    compiled = compiled_with(model)
    with region():
        for _ in range(6):
            out = compiled(x)
        assert off(out.float(), model(x).float()) < 0.05
    assert graphs() == 1


class Buckets(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(512, 512), nn.Linear(512, 512)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


@pytest.fixture
def one_process(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def replicated(model):
    return nn.parallel.DistributedDataParallel(model, bucket_cap_mb=1)  # every linear is a bucket


def sharded(model):
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model)


@pytest.mark.parametrize(("spread", "graphs"), [(replicated, 2), (sharded, 1)])
def test_distributed_training_learns_its_plans_at_the_calls(spread, graphs, one_process):
    """DDP's buckets are given to the backend with fakes, and FSDP2's parameters are no module's."""
    model, x = Buckets(), torch.randn(16, 512)
    twin = copy.deepcopy(model)
    compiled = compiled_with(spread(model))
    for _ in range(6):
        out = compiled(x)
        out.square().sum().backward()
        model.zero_grad()
    assert 0 < off(out, twin(x)) < 0.05 and lowered(compiled) >= 2
    assert sum("planned after 3" in note for note in loka.explain(compiled).notes) == graphs


@torch.no_grad()
def test_all_is_kept_and_nothing_is_watched():
    model, x = mlp(), torch.randn(64, 32)
    compiled = compiled_with(model, max_probe_overhead=1e6, max_mere=1e-9)
    for _ in range(3 * AT_LEAST):
        assert torch.equal(compiled(x), model(x))
    note = loka.explain(compiled).notes[0]
    assert lowered(compiled) == 0 and "0 measured again" in note
