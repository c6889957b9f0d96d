"""The cost of a candidate at a site: its kernel, and the casts of its operands, which other sites may share.

One tensor in one form (format, scaling, axis) is cast once for all sites that read it so, as precision.py does.

A clock (timing.py measures, roofline.py models) is asked for several GEMMs at once (`Asked`) and answers with their
times (`Times`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from loka_compile.dispatch.candidates import Fit
from loka_compile.kernels.quantize.quantize import ROWS
from loka_compile.spec.decision import Candidate
from loka_compile.spec.recipes import Recipe
from loka_compile.spec.site import Operand, Site
from loka_compile.spec.sizes import Sizes

Form = tuple[str, ...]
"""A tensor in a format: its name, dtype, scaling, the axis that is scaled along where there is one, and the rows and
columns of zeros that are added where there are any."""

STANDS_ALONE = {"", "placeholder", "get_attr", "mm", "addmm", "bmm", "baddbmm", "embedding", "_embedding_bag"}
"""Producers whose result Inductor cannot cast on the way: inputs, library kernels; "" is an unknown one."""


@dataclass(frozen=True)
class Cast:
    """Microseconds of bringing one tensor into a form.

    made_by: key of the site whose kernel could make the tensor in its epilogue, "" if there is none. Where it does, the
    cast rides there for nothing, if it can (`rides`), or takes `apart_us`, as a kernel of its own.
    beside_us: of a form with one scale a column, where another site has the tensor by rows in the same format, as one
    op makes both (passes/post_grad/fuse_cast.py); 0 where there is none.
    """

    form: Form
    us: float
    made_by: str = ""
    apart_us: float = 0.0
    rides: bool = False
    beside_us: float = 0.0

    @property
    def by_rows(self) -> Form:
        """The same tensor in the same format, with one scale a row."""
        return *self.form[:3], "-1"


@dataclass(frozen=True)
class Cost:
    """kernel_us: the product, with what brings its result to the wanted dtype. casts: of operands not frozen."""

    kernel_us: float
    casts: tuple[Cast, ...] = ()

    @property
    def alone_us(self) -> float:
        """With no cast shared."""
        return self.kernel_us + sum(cast.us for cast in self.casts)


FREE = Cost(0.0)
"""The cost of emulation, which shows numerics and is never timed."""


# ---------------------------------------------------------------- what a clock is asked, and answers


@dataclass(frozen=True)
class Asked:
    """A GEMM at some sizes, which may be expressions in the batch's symbol, and the candidates to be timed there."""

    site: Site
    sizes: Sizes
    fits: Sequence[Fit]


@dataclass(frozen=True)
class Times:
    """A clock's answer.

    keep_us: the GEMM as the model has it. costs: by candidate. source: where the times come from. lost: why a candidate
    need not be timed here.
    """

    keep_us: float
    costs: Mapping[Candidate, Cost]
    source: str
    lost: Mapping[Candidate, str] = field(default_factory=dict)


# ---------------------------------------------------------------- casts


@dataclass(frozen=True)
class Needed:
    """A cast that a recipe needs at a site. A clock says how long it takes.

    form, made_by, rides: as in `Cast`. elements: values to be cast, with the zeros that are added. fused: Inductor can
    cast them with what makes the tensor. late: an operand of grad_weight, whose scales span the batch. by_columns: it
    has one scale a column, and could be made beside the form by rows.
    """

    form: Form
    elements: int
    fused: bool
    made_by: str = ""
    rides: bool = False
    late: bool = False
    by_columns: bool = False

    def taking(self, us: float, apart_us: float = 0.0) -> Cast:
        """apart_us: as a kernel of its own, where another site's kernel makes the tensor."""
        return Cast(self.form, us, self.made_by, apart_us, self.rides) if self.made_by else Cast(self.form, us)


def casts(site: Site, sizes: Sizes, recipe: Recipe, run: Sizes | None = None) -> list[Needed]:
    """The casts of a recipe at a site. run: the padded sizes, where the kernel wants them: a cast writes the zeros too,
    and an operand that needs no cast is copied.

    A weight that is quantized once and for all needs none, nor does what has the dtype already. An epilogue that makes
    a tensor casts it too, if nothing else wants that wide, its scale is one a row and nothing is added to it.
    """
    run = run or sizes
    k, n = run.K - sizes.K, run.N - sizes.N
    left = _cast(site, sizes, recipe, "lhs", run.lhs, (0, k))
    right = None if site.static_rhs else _cast(site, sizes, recipe, "rhs", run.rhs, (k, n))
    return [needed for needed in (left, right) if needed is not None]


def _cast(
    site: Site, sizes: Sizes, recipe: Recipe, side: Literal["lhs", "rhs"], elements: int, zeros: tuple[int, int]
) -> Needed | None:
    """zeros: rows and columns of them that are added to the operand."""
    operand: Operand = site.lhs if side == "lhs" else site.rhs
    axis = -1 if side == "lhs" else -2
    padded = zeros != (0, 0)
    dtype, scaling = recipe.operand(side, site.gradient == side)
    if dtype == site.dtype and not padded:
        return None
    along = str(-3 - axis if operand.flipped else axis) if scaling in (*ROWS, "block") else ""
    form: Form = (operand.tensor or f"{side} of {site.key}", str(dtype).removeprefix("torch."), scaling, along)
    rides = operand.only_products and sizes.batch == 1 and scaling in ("none", "row") and along in ("", "-1")
    if padded:
        rows, columns = zeros[::-1] if operand.flipped else zeros
        form, rides = (*form, f"+{rows}x{columns}"), False
    return Needed(
        form,
        elements,
        fused=operand.producer.partition(".")[0] not in STANDS_ALONE,
        made_by=operand.made_by,
        rides=rides,
        late=site.role == "grad_weight" and sizes.batch == 1 and scaling != "none",
        by_columns=scaling == "row" and not padded,
    )
