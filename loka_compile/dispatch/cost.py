"""What a candidate costs at a site: its kernel, and the casts of its operands, which other sites may share.

One tensor in one form (format, scaling, axis) is cast once for all sites that read it so, as precision.py does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loka_compile.kernels.quantize.quantize import ROWS
from loka_compile.spec.recipes import Recipe
from loka_compile.spec.site import Site
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


def casts(
    site: Site,
    sizes: Sizes,
    recipe: Recipe,
    us: Callable[[int, bool], float],
    run: Sizes | None = None,
    late_us: Callable[[int], tuple[float, float]] | None = None,
) -> tuple[Cast, ...]:
    """The casts of a recipe at a site. `us(elements, fused)`: of one, fused with what makes the tensor or not. run: the
    padded sizes, where the kernel wants them: a cast writes the zeros too, and what needs none is copied.
    late_us(elements): of one for grad_weight, whose scales span the batch, by itself and beside the form by rows (0: no
    less); by default it is like any other.

    A weight that is quantized once and for all needs none, nor does what has the dtype already. An epilogue that makes
    a tensor casts it too, if nothing else wants that wide, its scale is one a row and nothing is added to it.
    """
    run = run or sizes
    k, n = run.K - sizes.K, run.N - sizes.N
    found = []
    for side, axis, elements, more in (("lhs", -1, run.lhs, (0, k)), ("rhs", -2, run.rhs, (k, n))):
        if side == "rhs" and site.static_rhs:
            continue
        operand = site.lhs if side == "lhs" else site.rhs
        dtype, scaling = recipe.operand(side, site.gradient == side)  # type: ignore[arg-type]
        if dtype == site.dtype and more == (0, 0):
            continue
        along = str(-3 - axis if operand.flipped else axis) if scaling in (*ROWS, "block") else ""
        name = operand.tensor or f"{side} of {site.key}"
        fused = operand.producer.partition(".")[0] not in STANDS_ALONE
        form: Form = (name, str(dtype).removeprefix("torch."), scaling, along)
        rides = operand.only_products and sizes.batch == 1 and scaling in ("none", "row") and along in ("", "-1")
        if more != (0, 0):
            form, rides = (*form, "+{}x{}".format(*(more[::-1] if operand.flipped else more))), False
        late = site.role == "grad_weight" and sizes.batch == 1 and scaling != "none"
        if late_us is not None and late:
            apart, beside = late_us(elements)
            found.append(Cast(form, apart, beside_us=beside if scaling == "row" and more == (0, 0) else 0.0))
        elif operand.made_by:
            found.append(Cast(form, us(elements, fused), operand.made_by, us(elements, False), rides))
        else:
            found.append(Cast(form, us(elements, fused)))
    return tuple(found)
