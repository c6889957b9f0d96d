"""What an arm trains: its portfolios and tasks; networks that come back from their files."""

from dataclasses import replace

import pytest
import torch

from examples.lattice.ktap.record import Knowledge
from examples.lattice.networks import fit
from examples.lattice.networks.model import LatticeNetwork
from examples.lattice.networks.samples import Passes
from examples.lattice.pipeline import arms
from tests.examples.lattice.networks.small import SIZE, toy

PARTS = {"groups": [[[0, 0], [1, 0], [2, 0]], [[0, 1], [2, 1]]], "untied": [[0, 1, 1], [0, 0, 1]]}
BATCH = 32


def known(found):
    generator = torch.Generator().manual_seed(0)
    rows = len(found.labels)
    return Knowledge(
        torch.randn(rows, 3, generator=generator),
        torch.randn(rows, 2, generator=generator),
        torch.rand(rows, generator=generator) < 0.7,
    )


def test_all_in_one_is_an_arm_where_the_partition_has_several_groups():
    assert arms.ALL in arms.arms_of(PARTS)
    assert arms.ALL not in arms.arms_of({"groups": [[[0, 0], [1, 0]]], "untied": [[0, 0]]})
    (job,) = arms.jobs(arms.ALL, toy(), SIZE, PARTS, None)
    assert len(job.keys) == 5 and job.found.tasks == ("one", "two") and job.size.untied == ()
    assert job.found.labels[job.found.inputs.domain == 1, 1].isnan().all()  # no portfolio of any group


def test_a_group_has_heads_for_its_own_tasks_alone():
    found = toy()
    for arm in (arms.MERGED, arms.UNTIED, arms.CONSOLIDATED):
        first, second = arms.jobs(arm, found, SIZE, PARTS, known(found))
        assert first.found.tasks == ("one",) and second.found.tasks == ("two",)
        assert second.keys == ((0, 1), (2, 1)) and second.found.schema.tasks == 1
        assert (second.found.knowledge is not None) == (arm == arms.CONSOLIDATED)
        if second.found.knowledge:
            assert torch.equal(second.found.knowledge.logits, known(found).logits[:, [1]])


def test_a_group_has_weights_for_its_own_domains_alone():
    """And learns the same as one that has some for all."""
    found = toy()
    for job in arms.jobs(arms.UNTIED, found, SIZE, PARTS, None):
        domains = sorted({domain for domain, _ in job.keys})
        every = replace(job, found=replace(job.found, schema=replace(job.found.schema, served=())))
        assert job.found.schema.served == tuple(domains)
        few, all_ = (
            arms.arm([each], arms.BACKENDS["eager"], 0, None, lambda losses, *_: losses) for each in (job, every)
        )
        assert few["portfolios"] == all_["portfolios"] and few["flops_by_model"] == all_["flops_by_model"]
        assert few["tables"] == all_["tables"] and (few["weights"] < all_["weights"]) == (len(domains) < 3)
    alone = arms.jobs(arms.SEPARATE, found, SIZE, PARTS, None)
    assert [job.found.schema.served for job in alone] == [(0,), (1,), (2,), (0,), (2,)]


def test_tables_count_the_ids_of_a_networks_own_rows():
    found = toy()
    keys = [(domain, task) for domain in range(3) for task in range(2)]
    every = found.only(keys)
    apart = [found.portfolio(*key) for key in keys]
    for its in (every, *apart):
        rows = its.labelled
        fields = [its.inputs.ids[rows, field].tolist() for field in range(its.inputs.ids.shape[1])]
        words = its.inputs.bag[rows].flatten().tolist()
        there = its.inputs.mask[rows].unbind(1)
        events = [
            its.inputs.events[rows, source][mask][:, field].tolist()
            for source, mask in enumerate(there)
            for field in range(its.inputs.events.shape[3])
        ]
        assert its.vocabulary() == sum(len({0, *column}) for column in (*fields, words, *events))
        network = LatticeNetwork(its.schema, SIZE)
        assert its.vocabulary() * SIZE.width <= fit.parameters(network)[0]
    assert max(its.vocabulary() for its in apart) < every.vocabulary()


def test_without_a_teacher_nothing_is_distilled():
    (job, _) = arms.jobs(arms.CONSOLIDATED, toy(), SIZE, PARTS, None)
    assert job.objective.soft is None and job.found.schema.known == 3  # as the toy's schema has it


def test_an_arm_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="there is no arm 'merge'; there are separate,"):
        arms.jobs("merge", toy(), SIZE, PARTS, None)


def test_a_portfolio_without_rows_to_learn_from_is_judged_as_it_was_drawn():
    found = toy()
    found.labels[:300][found.inputs.domain[:300] == 1] = torch.nan
    made = arms.jobs(arms.SEPARATE, found, SIZE, {"groups": [[[0, 0], [1, 0]]], "untied": [[0, 0, 0]]}, None)
    trained = []

    def watch(losses, total, name):
        trained.append((name, total))
        return losses

    result = arms.arm(made, arms.BACKENDS["eager"], 0, None, watch)
    assert trained[1] == ("y: one", 0) and trained[0][1] > 0
    assert {*result["portfolios"]} == {"x: one", "y: one"} and 0.2 < result["portfolios"]["y: one"]["auc"] < 0.8
    assert result["groups"] == [((0, 0),), ((1, 0),)]


def test_an_arm_that_is_stopped_leaves_earlier_networks_as_they_are(tmp_path):
    made = arms.jobs(arms.MERGED, toy(), SIZE, PARTS, None)
    first = arms.arm(made, arms.BACKENDS["eager"], 0, tmp_path, lambda losses, *_: losses)
    assert {*first["files"]} == {"group 0.safetensors", "group 1.safetensors"}

    def stop(losses, total, name):
        if name == "group 1":
            raise KeyboardInterrupt
        return losses

    with pytest.raises(KeyboardInterrupt):
        arms.arm(made, arms.BACKENDS["eager"], 1, tmp_path, stop)
    assert all(arms.digest(tmp_path / name) == of for name, of in first["files"].items())


def test_groups_and_separate_networks_take_exactly_as_many_steps_as_one_for_all():
    found = toy()
    found = replace(found, passes=Passes(2, BATCH))
    found.labels[torch.arange(len(found.labels)) % 7 > 0, 1] = torch.nan  # a task that few rows tell of
    found.labels[:, 0].masked_fill_(torch.arange(len(found.labels)) % 3 == 1, torch.nan)
    taken = []

    def watch(losses, total, name):
        each = [*losses]
        taken.append((total, len(each)))
        return each

    for arm in (arms.ALL, arms.MERGED, arms.UNTIED, arms.CONSOLIDATED, arms.LONGER, arms.SEPARATE):
        teacher = known(found) if arm == arms.CONSOLIDATED else None
        arms.arm(arms.jobs(arm, found, SIZE, PARTS, teacher), arms.BACKENDS["eager"], 0, None, watch)
    one, groups, longer, separate = taken[0], taken[1:7], taken[7:12], taken[12:]
    assert one[0] == one[1] and groups == [one] * 6 and longer == [one] * 5 and max(separate) < one


def test_a_network_comes_back_from_its_file(tmp_path):
    found = toy()
    job = arms.jobs(arms.CONSOLIDATED, found, SIZE, PARTS, known(found))[0]
    result = arms.arm([job], arms.BACKENDS["eager"], 0, tmp_path, lambda losses, *_: losses)
    model, said = arms.load(tmp_path / "group 0.safetensors")
    assert said["tasks"] == ("one",) and said["fields"] == ("a", "b", "domain") and model.size == job.size
    scores = arms.fit.judge(job.found, job.found.test, arms.fit.predict(model, job.found, job.found.test))
    assert scores == result["portfolios"]
