"""What is decided before the consolidated model is trained: who shares it, its features, its size, its teacher.

Every stage gives plain data, which the run keeps in a file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from examples.lattice import data
from examples.lattice.data import Data, DataError
from examples.lattice.filter import choose
from examples.lattice.filter.importance import Feature, columns_of, permutation_importances
from examples.lattice.ktap import movielens as ktap
from examples.lattice.ktap.record import Knowledge, nothing
from examples.lattice.ktap.teacher import HOUR
from examples.lattice.networks import fit
from examples.lattice.networks.loss import Objective
from examples.lattice.networks.model import LatticeNetwork
from examples.lattice.networks.samples import Samples
from examples.lattice.networks.size import Size
from examples.lattice.networks.untie import for_domain
from examples.lattice.partitioner import groups
from examples.lattice.partitioner.bench import DELAYS, FLOPS, LIMITS, WEIGHTS
from examples.lattice.partitioner.describe import Portfolio, agreements
from examples.lattice.partitioner.partition import partition
from examples.lattice.sketch.search import Between, Bounds, Cost, Values, search
from examples.metrics import fastest

TTL = 6 * HOUR
HELD = 0.1  # of the training rows, the last: what importances are measured and sizes are chosen on
RATED, REPEATS = 2048, 2  # rows for importances, and how often each feature is dealt
TIED = 0.5  # agreement of gradients from which on two domains share what is untied
SPACE = {
    "width": (8, 16),
    "layers": (1, 2),
    "tokens": (4, 8),
    "k": Between(4, 12, whole=True),
    "hidden": Between(32, 128, log=True, whole=True),
    "keys": (8, 16),
}
TIMED = 256  # rows of the call whose time is a size's latency

Compile = Callable[[nn.Module], Callable[..., Tensor]]
Watch = Callable[[Iterator[Any], int, str], Iterator[Any]]
"""Shows how far a training is: given its losses, how many there will be, and its name."""


def eager(model: nn.Module) -> Callable[..., Tensor]:
    """Compiles nothing."""
    return model


def load(name: str, quick: bool, seed: int) -> Data:
    """The data in the split that the networks of this seed have: labels that judge them decide nothing."""
    if name not in DELAYS:
        raise DataError(f"there is no {name!r}; there are {', '.join(DELAYS)}. Of your own data: grouped(...)")
    found = data.movielens() if name == "movielens" else data.clothing(seed)
    if not quick:
        return found
    every = {part: getattr(found, part)[torch.arange(0, len(getattr(found, part)), 10)] for part in ("train", "test")}
    return Data(**{**found.__dict__, **every})


def grouped(found: Data, seed: int, delays: Sequence[float] | None = None) -> dict[str, Any]:
    """Which portfolios share a model, and in each group which copy of untied weights each domain uses. delays: by task,
    seconds until half of its feedback is there; without them those of the bench, and 0 for data it does not have."""
    keys = groups.keys_of(found)
    if delays is None:
        delays = DELAYS.get(found.name, (0.0,) * len(found.tasks))
    portfolios = groups.describe(found, keys, FLOPS / len(keys), delays, seed)
    chosen = partition(portfolios, LIMITS, WEIGHTS)
    return {
        "groups": [[(keys[i].domain, keys[i].task) for i in group] for group in chosen.groups],
        "names": [[portfolios[i].name for i in group] for group in chosen.groups],
        "untied": [
            copies_of(len(found.domains), {i: keys[i].domain for i in group}, portfolios) for group in chosen.groups
        ],
        "explain": chosen.explain().splitlines(),
    }


def copies_of(domains: int, group: dict[int, int], portfolios: list[Portfolio]) -> list[int]:
    """A copy for each domain: a domain joins the first copy with all of whose domains its gradients agree, else it gets
    one of its own [I]. A domain whose gradient is no more than chance joins the first: nothing says that it needs its
    own. group: portfolio -> domain; domains outside of the group use copy 0, which nobody asks for."""
    gradients: dict[int, Tensor] = {}
    for index, domain in sorted(group.items(), key=lambda of: of[1]):
        gradients[domain] = gradients.get(domain, 0) + portfolios[index].gradient
    cosines, known = agreements([*gradients.values()])
    copies: list[list[int]] = []  # of places among the gradients
    for place in known.nonzero()[:, 0].tolist():
        fitting = (each for each in copies if all(cosines[place, other] >= TIED for other in each))
        copy = next(fitting, None)
        if copy is None:
            copies.append([place])
        else:
            copy.append(place)
    names = [*gradients]
    own = {names[place]: number for number, each in enumerate(copies) for place in each}
    return [own.get(domain, 0) for domain in range(domains)]


def filtered(found: Samples, budget: int, seed: int, watch: Watch, serve: Compile = eager) -> dict[str, Any]:
    """Importances of fields and bag by task on held-out rows, and the `budget` features that Pareto fronts keep; the
    domain, numbers and sequences always stay. Values are dealt to rows of the same domain. serve: compiles the network
    that is asked."""
    found, early, held = held_out(found)
    torch.manual_seed(seed)
    model = LatticeNetwork(found.schema, Size())
    finish(watch, model, found, early, "filter")
    inputs, target = found.batch(held[-RATED:])
    bag = (Feature("bag", 1),) if found.schema.bag > 1 else ()
    features = (*columns_of(found.fields[:-1], 0), *bag)
    importances = permutation_importances(
        serve(model), inputs, target.labels, features, repeats=REPEATS, seed=seed, within=inputs.domain
    )
    sigma = importances.sigma.median(dim=0).values.numpy()
    budget = min(budget, len(features))
    chosen = choose.pareto(importances.mean.numpy(), budget, np.random.default_rng(seed), sigma)
    return {
        "kept": sorted(features[i].name for i in chosen),
        "importances": {f.name: row for f, row in zip(features, importances.mean.tolist(), strict=True)},
    }


def sketched(
    found: Samples, untied: list[int], trials: int, bounds: Bounds, folder: Path, seed: int, watch: Watch
) -> dict[str, Any]:
    """The size with the best AUC / FLOPs^0.003 among a few within the bounds; its latency is that of TIMED rows. Trials
    are kept in the folder, in a file for all that decides what a trial is worth."""
    found, early, held = held_out(found)
    inputs, _ = found.batch(held[:TIMED])

    def cost(values: Values) -> Cost:
        torch.manual_seed(seed)
        model = LatticeNetwork(found.schema, size_of(values, untied))
        served = for_domain(model, 0).eval()
        with torch.no_grad():
            return Cost(fit.flops_of(model, found), fastest(lambda: served(*inputs), 3))

    def quality(values: Values, report: Callable[[int, float], None]) -> float:
        torch.manual_seed(seed)
        model = LatticeNetwork(found.schema, size_of(values, untied))
        finish(watch, model, found, early, f"sketch {dict(values)}")
        scores = fit.judge(found, held, fit.predict(model, found, held))
        mean = fmean(each["auc"] for each in scores.values())
        report(1, mean)
        return mean

    said = {
        "data": found.name,
        "rows": len(found.labels),
        "learned from": len(early),
        "fields": found.fields,
        "bag": found.inputs.bag.shape[1],
        "timed": len(inputs.ids),
        "untied": untied,
        "seed": seed,
    }
    storage = folder / f"sketch-{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:8]}.db"
    best = search(cost, quality, SPACE, bounds, trials=trials, storage=storage, said=said, seed=seed)
    return {**asdict(best), "size": asdict(size_of(best.values, untied))}


def size_of(values: Values, untied: list[int]) -> Size:
    """A network's size from what the search proposes."""
    picked: dict[str, Any] = {name: int(values[name]) for name in ("width", "layers", "tokens", "k", "keys")}
    picked["hidden"] = (int(values["hidden"]),)
    return replace(Size(), **picked, untied=tuple(untied))


def taught(found: Samples, path: Path, seed: int, count: int | None) -> dict[str, Any]:
    """Writes what a teacher knew of each row, through a store with a time to live; MovieLens alone has pairs and times.

    The teacher learns from the first half of the ratings, so of these rows nothing is known.
    """
    if found.name != "movielens":
        return {"file": "", "why": f"the teacher here is MovieLens' (ktap/movielens.py); {found.name} has none"}
    start = time.process_time()
    stream = ktap.stream(seed, count)
    knowledge = ktap.through_the_store(stream, ktap.teach(stream, seed), TTL, 1.0, seed)
    before = nothing(stream.first, knowledge.embedding.shape[1], knowledge.logits.shape[1])
    parts = {
        name: torch.cat([getattr(of, name) for of in (before, knowledge)]) for name in ("embedding", "logits", "hit")
    }
    save_file(parts, path)
    return {
        "file": path.name,
        "files": {path.name: digest(path)},
        "hits": float(knowledge.hit.float().mean()),  # of the pairs that it was asked for
        "learned": float(parts["hit"][: found.cut].float().mean()),
        "tested": float(parts["hit"][found.cut :].float().mean()),
        "cpu_seconds": time.process_time() - start,
    }


def digest(path: Path) -> str:
    """What a file holds, in short; empty if it is not there."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def knowledge_of(path: Path) -> Knowledge:
    return Knowledge(**load_file(path))


def held_out(found: Samples) -> tuple[Samples, Tensor, Tensor]:
    """The training rows before the last tenth, and that tenth, whose ids that are new in it are unknown."""
    cut = round(found.cut * (1 - HELD))
    early, held = found.train[:cut], found.train[cut:]
    return found.unseen_hidden(held, early), early, held


def finish(
    watch: Watch,
    model: LatticeNetwork,
    found: Samples,
    rows: Tensor,
    name: str,
    call: Callable[..., Tensor] | None = None,
    objective: Objective | None = None,
    steps: int | None = None,
) -> float:
    """Trains a model to the end, in eager unless through `call`, for as many steps as the data ask for or as are said.
    Without rows it stays as it was drawn. Gives CPU seconds, without those of compiling."""
    if steps is None or not len(rows):
        steps = fit.steps(len(rows), found.passes.epochs, found.passes.batch)
    losses = fit.train(model, call or model, found, rows, objective or Objective(), total=steps)
    each = [time.process_time()]
    for _ in watch(losses, steps, name):
        each.append(time.process_time())
    return seconds_of(each)


def seconds_of(clock: Sequence[float]) -> float:
    """What steps cost, of the clock before the first and after each. The first one compiles, so it is taken to cost
    what the others do on average; of one step alone that cannot be known."""
    count = len(clock) - 1
    return (clock[-1] - clock[1]) * count / (count - 1) if count > 1 else clock[-1] - clock[0]
