"""What each layer of a model costs on a GPU that is not here, under each way to shard it.

Compute is modelled by `loka.preview`: every kernel of a training step, by the layer whose module it works for.
Communication and memory are reckoned [I]: weights and gradients of 2 bytes, 12 bytes a parameter for Adam's state in
float32; collectives move (w - 1) / w of their bytes over a GPU's link and overlap with nothing.

    replicated        all-reduce of the gradient                                     16 bytes a parameter
    state sharded     reduce-scatter of the gradient, all-gather of new weights      2 + 14 / w
    sharded           all-gather forward and backward, reduce-scatter                16 / w
    by rows           of tables: their vectors travel there and back, all-to-all     16 / w
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

import loka_compile as loka
from examples.lattice.files import merge_json, read_mapping
from examples.lattice.networks.processors import Features
from examples.lattice.sketch.sharding import Change, Layer

REST = "the rest"
"""Kernels that work for no module, which run whatever is sharded, and parameters that lie in no layer."""


@dataclass(frozen=True)
class Cluster:
    """gpus: how many train together; link: bytes a second that one sends and receives; start: seconds of a collective
    beside its bytes; memory: bytes of one GPU for weights, gradients and state."""

    gpus: int = 8
    link: float = 40e9  # of a 400 Gbit/s network
    start: float = 20e-6
    memory: int = 60 * 2**30

    def __post_init__(self) -> None:
        if not (isinstance(self.gpus, int) and self.gpus >= 1):
            raise ValueError(f"expected one GPU or more, got gpus={self.gpus}")
        if not (self.link > 0 and self.start >= 0 and self.memory >= 0):  # nan is neither
            raise ValueError(f"expected link above 0, start and memory of 0 or more; got {self}")

    def moving(self, size: float, collectives: int) -> float:
        """Seconds of so many collectives of `size` bytes each; one GPU alone has none."""
        if self.gpus == 1:
            return 0.0
        return collectives * (self.start + size * (self.gpus - 1) / self.gpus / self.link)


@dataclass(frozen=True)
class Part:
    """One layer as it is: seconds of its kernels, parameters in tables and elsewhere, vectors' bytes that its tables
    give to one GPU's batch."""

    name: str
    seconds: float
    tables: int = 0
    weights: int = 0
    vectors: int = 0


def previewed(model: nn.Module, inputs: tuple[Tensor, ...], target: str) -> dict[str, float]:
    """Modelled seconds of a training step by layer, in bf16, as Inductor compiles it."""
    found = loka.preview(model, inputs, target, training=True, sides=("inductor",), measure=False).to_json()
    side = found["sides"][0]
    if side["error"]:
        raise RuntimeError(f"{target}: {side['error']}")
    seconds: dict[str, float] = {}
    for kernel in side["kernels"]:
        name = layer_of(kernel["site"], model)
        seconds[name] = seconds.get(name, 0.0) + kernel["modelled_us"] / 1e6
    return seconds


def names_of(model: nn.Module) -> list[str]:
    """The layers in the order of the model: its children, and the entries of a list of layers or of Features."""
    names = []
    for name, child in model.named_children():
        is_group = isinstance(child, nn.ModuleList | Features)
        names += [f"{name}.{entry}" for entry, _ in child.named_children()] if is_group else [name]
    return names


def layer_of(site: str, model: nn.Module) -> str:
    """The layer that a kernel's site lies in."""
    module = site.partition("#")[0]
    return next((name for name in names_of(model) if module == name or module.startswith(name + ".")), REST)


def parts_of(model: nn.Module, seconds: Mapping[str, float], batch: int, lookups: Mapping[str, int]) -> list[Part]:
    """The layers in the order of the model, and the rest: what lies in no layer. Every parameter is in one of them, a
    tied one in the first, or in the first with a table of it. lookups: by layer, vectors that its tables give to a
    row."""
    counted: set[int] = set()

    def numbers(parameters: Iterable[nn.Parameter]) -> int:
        fresh = {id(each): each for each in parameters if id(each) not in counted}
        counted.update(fresh)
        return sum(each.numel() for each in fresh.values())

    layers = {name: model.get_submodule(name) for name in names_of(model)}
    own = {name: _embeddings(layer) for name, layer in layers.items()}
    tables = {name: numbers(m.weight for m in embeddings) for name, embeddings in own.items()}
    parts = []
    for name, layer in layers.items():
        vectors = batch * lookups.get(name, 0) * own[name][0].embedding_dim * 2 if own[name] else 0
        parts.append(Part(name, seconds.get(name, 0.0), tables[name], numbers(layer.parameters()), vectors))
    return [*parts, Part(REST, seconds.get(REST, 0.0), weights=numbers(model.parameters()))]


def _embeddings(layer: nn.Module) -> list[nn.Embedding | nn.EmbeddingBag]:
    return [each for each in layer.modules() if isinstance(each, nn.Embedding | nn.EmbeddingBag)]


def layers_of(parts: list[Part], cluster: Cluster) -> list[Layer]:
    """Each layer's seconds and bytes under its strategies; a layer with tables is two, its tables first."""
    layers = []
    for part in parts:
        if part.tables:
            layers.append(_tables(part, cluster))
        layers.append(_weights(part, cluster))
    return layers


def _tables(part: Part, cluster: Cluster) -> Layer:
    whole, own = 16 * part.tables, -(-16 * part.tables // cluster.gpus)
    seconds = {
        "replicated": cluster.moving(2 * part.tables, 2),
        "by rows": cluster.moving(part.vectors, 2),
    }
    return Layer(f"{part.name}, tables", seconds, {"replicated": whole, "by rows": own})


def _weights(part: Part, cluster: Cluster) -> Layer:
    if not part.weights:
        return Layer(part.name, {"replicated": part.seconds}, {"replicated": 0})
    size, w = part.weights, cluster.gpus
    collectives = {"replicated": 2, "state sharded": 2, "sharded": 3}
    memory = {"replicated": 16 * size, "state sharded": 2 * size + -(-14 * size // w), "sharded": -(-16 * size // w)}
    seconds = {name: part.seconds + cluster.moving(2 * size, count) for name, count in collectives.items()}
    return Layer(part.name, seconds, memory)


def change_of(cluster: Cluster) -> Change:
    """Neighbours of different strategies do not share a collective's bucket: one start more [I]."""
    return lambda _, before, after: cluster.moving(0, 1) if before != after else 0.0


def kept(path: Path | None, key: str, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `make` gives, from a JSON file if it is there already: previews take a minute. The file is replaced whole,
    and what another process has added to it in the meantime stays."""
    if path is None:
        return make()
    found = read_mapping(path).get(key)
    if found is None:
        found = make()
        merge_json(path, lambda there: {**there, key: found})
    return found
