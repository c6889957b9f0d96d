"""The student: zeros and no soft label on a miss, clipped embeddings, hits dropped in training alone; Redis may die."""

from __future__ import annotations

import time

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.lattice.ktap.guard import Guarded
from examples.lattice.ktap.record import Knowledge, Misses, TeacherId, encode, key, nothing
from examples.lattice.ktap.store import InProcess
from examples.lattice.ktap.student import Student, Use, clip, look_up, loss
from examples.lattice.ktap.teacher import write

WIDTH, TASKS = 4, 2
TEACHER = TeacherId("teacher", 7)
CARDINALITIES = (9, 9)


def student(use: Use) -> Student:
    torch.manual_seed(0)
    return Student(CARDINALITIES, 3, TASKS, WIDTH, use, width=4, hidden=(8,))


def batch(count: int = 64):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 9, (count, 2), generator=generator)
    labels = torch.randint(2, (count, TASKS), generator=generator).float()
    hit = torch.rand(count, generator=generator) < 0.5
    embedding = torch.randn(count, WIDTH, generator=generator) * hit[:, None]
    logits = torch.randn(count, TASKS, generator=generator) * hit[:, None]
    return ids, torch.zeros(count, 1, dtype=torch.int64), labels, Knowledge(embedding, logits, hit)


def test_clipping_shortens_what_is_long_and_leaves_the_rest():
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(clip(x, 1.0), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


def test_a_miss_is_zeros_and_says_so():
    model, (ids, bag, _, knowledge) = student(Use()).eval(), batch()
    empty = nothing(len(ids), WIDTH, TASKS)
    missed = model(ids, bag, empty.embedding, empty.hit)
    torch.testing.assert_close(model(ids, bag, knowledge.embedding, empty.hit), missed)  # an embedding without a hit
    zeros = model(ids, bag, empty.embedding, ~empty.hit)  # a hit whose embedding is zero is told apart by the flag
    assert not torch.allclose(zeros, missed)


def test_hits_are_dropped_in_training_alone():
    ids, bag, _, knowledge = batch(4000)
    model = student(Use(drop=0.25))
    seen = []
    model.net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(ids, bag, knowledge.embedding, knowledge.hit)
    flags = seen[0][:, -1].bool()
    assert not bool((flags & ~knowledge.hit).any())
    assert float(flags.sum() / knowledge.hit.sum()) == pytest.approx(0.75, abs=0.03)
    assert not seen[0][~flags][:, -WIDTH - 1 : -1].any()
    model.eval()
    model(ids, bag, knowledge.embedding, knowledge.hit)
    assert torch.equal(seen[1][:, -1].bool(), knowledge.hit)


def test_the_loss_adds_soft_labels_where_there_are_any():
    _, _, labels, knowledge = batch()
    logits = torch.randn(64, TASKS)
    plain = binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(loss(logits, labels, knowledge, Use(labels=False)), plain)
    torch.testing.assert_close(loss(logits, labels, nothing(64, WIDTH, TASKS), Use()), plain)
    use = Use(weight=0.5, smooth=0.1)
    soft = 0.9 * knowledge.logits[knowledge.hit].sigmoid() + 0.05
    added = binary_cross_entropy_with_logits(logits[knowledge.hit], soft, reduction="sum") / (64 * TASKS)
    torch.testing.assert_close(loss(logits, labels, knowledge, use), plain + 0.5 * added)


def test_a_missing_label_says_nothing_and_costs_nothing():
    _, _, labels, knowledge = batch()
    partly = labels.clone()
    partly[:, 1] = torch.nan  # a task without labels
    partly[:20, 0] = torch.nan
    logits = torch.randn(64, TASKS, requires_grad=True)
    value = loss(logits, partly, knowledge, Use())
    one = Knowledge(knowledge.embedding[20:], knowledge.logits[20:, :1], knowledge.hit[20:])
    torch.testing.assert_close(value, loss(logits[20:, :1], labels[20:, :1], one, Use()))  # as if it were not there
    value.backward()
    assert logits.grad.isfinite().all() and not logits.grad[:, 1].any() and not logits.grad[:20].any()
    assert loss(logits, torch.full_like(labels, torch.nan), knowledge, Use()) == 0


def test_only_what_was_computed_before_the_impression_is_read():
    store = InProcess()
    write(
        store,
        [(1, 2), (3, 4)],
        lambda pairs: (torch.ones(2, WIDTH), torch.ones(2, TASKS)),
        clock=lambda: 50.0,
        teacher=TEACHER,
    )
    found, misses = look_up(store, [1, 1, 3, 5], [2, 2, 4, 5], [50.0, 51.0, 99.0, 99.0], WIDTH, TASKS, TEACHER)
    assert found.hit.tolist() == [False, True, True, False] and misses == Misses(absent=1, late=1)


@pytest.mark.redis
def test_redis_killed_and_restarted_in_training_and_serving(redis_server):
    """Nothing fails, no lookup takes longer than the deadline, hits come back with the server."""
    from examples.lattice.ktap.redis_store import OnRedis

    deadline = 0.3
    store = Guarded(OnRedis(redis_server.url, seconds=0.2), deadline=deadline, rest=0.1)
    ids, bag, labels, _ = batch()
    users, items = ids[:, 0].tolist(), ids[:, 1].tolist()
    pairs = list(zip(users, items, strict=True))
    keys = [key(*pair, TEACHER) for pair in pairs]
    records = encode(keys, torch.ones(64, WIDTH), torch.ones(64, TASKS), [1.0] * 64, TEACHER)
    slowest, hits = 0.0, []

    def teach():
        store.put(keys, records, 600)

    def read():
        nonlocal slowest
        start = time.monotonic()
        found, _ = look_up(store, users, items, [2.0] * 64, WIDTH, TASKS, TEACHER)
        slowest = max(slowest, time.monotonic() - start)
        hits.append(float(found.hit.float().mean()))
        return found

    def until_hits():
        end = time.monotonic() + 60
        while True:
            teach()
            if read().hit.all():
                return
            assert time.monotonic() < end, store.counts
            time.sleep(0.05)

    model = student(Use())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    until_hits()
    losses = []
    for number in range(40):
        if number == 10:
            redis_server.kill()
        if number == 20:
            redis_server.start()
            until_hits()
        known = read()
        value = loss(model(ids, bag, known.embedding, known.hit), labels, known, Use())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(binary_cross_entropy_with_logits(model(ids, bag, known.embedding, known.hit), labels).item())
        if 10 <= number < 20:
            assert not known.hit.any()
    assert min(losses[-5:]) < losses[0] and all(value == value for value in losses)
    model.eval()
    for state in (redis_server.freeze, redis_server.kill):
        state()
        for _ in range(3):
            known = read()
            assert not known.hit.any()
            assert bool(model(ids, bag, known.embedding, known.hit).isfinite().all())
    redis_server.start()
    until_hits()
    assert hits[-1] == 1.0
    assert slowest < deadline + 0.7  # threads of a busy machine switch late
    assert store.counts.errors > 0
    store.close()


@pytest.mark.redis
def test_a_redis_that_is_full_takes_nothing_and_serves_on(tmp_path):
    pytest.importorskip("redis")
    from examples.lattice.ktap.redis_store import OnRedis
    from tests.examples.lattice.ktap.servers import Server

    server = Server(tmp_path, "--maxmemory", "2mb", "--maxmemory-policy", "noeviction")
    store = Guarded(OnRedis(server.url, seconds=5), deadline=30)
    try:
        store.put([b"first"], [b"1"], 600)
        for number in range(40):
            store.put([b"%d" % number], [bytes(100_000)], 600)
        assert store.counts.unwritten > 0 and "maxmemory" in store.counts.last_error
        assert store.get([b"first"]) == [b"1"]
    finally:
        store.close()
        server.kill()
