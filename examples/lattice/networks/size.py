"""How large a Lattice Network is, which of its parts it has, and what it is asked about."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schema:
    """What a network reads and answers.

    cardinalities  ids of each categorical field, the domain among them; `bag`: ids of the bag
    dense          how many numbers
    sources        for each event source the ids of each of its fields
    length         tokens that a source's sequence has
    domains, tasks how many
    served         the domains that the network is for, in rising order; () for all. It has copies of untied weights for
                   these alone
    known          width of a teacher's embedding; 0 for none. clip: longest that an embedding may be; drop: share of
                   hits that training takes for misses
    id_dropout     by field, how often training replaces an id with 0
    """

    cardinalities: tuple[int, ...]
    bag: int
    dense: int
    sources: tuple[tuple[int, ...], ...]
    length: int
    domains: int
    tasks: int
    known: int = 0
    id_dropout: tuple[float, ...] = ()
    clip: float = 10.0
    drop: float = 0.1
    served: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if list(self.served) != sorted({*self.served} & {*range(self.domains)}):
            raise ValueError(f"served names some of {self.domains} domains in rising order, got {self.served}")
        if self.id_dropout and len(self.id_dropout) != len(self.cardinalities):
            raise ValueError(
                f"expected a share of hidden ids for each of {len(self.cardinalities)} fields, got {self.id_dropout}"
            )
        if not all(0 <= share <= 1 for share in (*self.id_dropout, self.drop)):
            raise ValueError(f"shares lie from 0 to 1, got id_dropout {self.id_dropout} and drop {self.drop}")
        if not self.sources:
            raise ValueError("a network reads one event source at least; without events give one of a token each")

    @property
    def own(self) -> tuple[int, ...]:
        """The domains that the network is for, one by one."""
        return self.served or tuple(range(self.domains))

    @property
    def tokens(self) -> int:
        """Of the features that are no events: fields, bag, numbers, what the teacher knows."""
        return len(self.cardinalities) + 1 + self.dense + bool(self.known)

    @property
    def events(self) -> int:
        """Tokens of all sequences."""
        return len(self.sources) * self.length


@dataclass(frozen=True)
class Size:
    """width of a token; layers: pairs of blocks; keys: generated for each request; tokens: that a fusion block makes;
    k, hidden: of its factorization machine and MLP; ffn: of the per-domain networks; head: of the task modules.

    The rest switches parts off. interleaved: False runs all transformer blocks before all fusion blocks. rms: False
    takes LayerNorm for RMSNorm. storage: False lets a layer see the layer before it alone.
    untied: which copy of the fusion blocks of the last `untied_layers` layers each domain uses; () for one copy.
    by_domain: each domain has its own FFN in the transformer blocks. towers: and its own task modules.
    """

    width: int = 16
    layers: int = 2
    heads: int = 2
    keys: int = 16
    tokens: int = 8
    k: int = 8
    hidden: tuple[int, ...] = (64,)
    ffn: int = 32
    head: tuple[int, ...] = (32,)
    interleaved: bool = True
    storage: bool = True
    qk_norm: bool = True
    rms: bool = True
    by_domain: bool = True
    towers: bool = False
    untied: tuple[int, ...] = ()
    untied_layers: int = 1

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads, self.keys, self.tokens, self.k, self.ffn) < 1:
            raise ValueError(f"every size is 1 or more, got {self}")
        if sorted({*self.untied}) != list(range(len({*self.untied}))):
            raise ValueError(f"copies are numbered from 0 without gaps, got untied {self.untied}")
        if self.width % (4 * self.heads):
            raise ValueError(
                f"RoPE turns a head's channels in pairs, half by index and half by time: expected a width that is a "
                f"multiple of 4 x {self.heads} heads, got {self.width}"
            )
