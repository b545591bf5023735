"""Energy distance: the squared MMD of the Riesz kernel -|x - y|^r, 0 < r < 2, over all pairs.

    E_r(X, Y) = 2 E|X - Y|^r - E|X - X'|^r - E|Y - Y'|^r        Szekely & Rizzo 2013, J. Stat. Plan. Inference 143, 1249

Zero only for equal distributions; no covariance and no rank, so it serves small samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features, full_precision, mean_of_rows, same_width
from .kernel_sums import BLOCK, Kernel, KernelSums, normal_interval


@dataclass(frozen=True)
class EnergyDistance:
    """An energy distance, its three means and its errors.

    The unbiased one is negative for more than half of all pairs of samples of one distribution. standard_error: from
    the rows, by the jackknife; for equal distributions it is too large by sqrt(2). slice_error: from the finite number
    of directions; 0 where there are none.
    """

    value: float
    r: float
    unbiased: bool
    across: float  # mean of |x - y|^r
    within_real: float  # mean of |x - x'|^r over different rows
    within_generated: float
    standard_error: float  # nan below 3 rows
    slice_error: float
    slices: int  # 0: all pairs in the space itself
    n_real: int
    n_generated: int

    @property
    def null(self) -> float:
        """What equal distributions give on average: 0, or the bias of pairs of a row with itself."""
        if self.unbiased:
            return 0.0
        return self.within_real * (1 / self.n_real + 1 / self.n_generated)

    @property
    def interval_kind(self) -> str:
        """How the interval was made."""
        directions = ", and of the directions" if self.slices else ""
        return f"normal 95 %, jackknife of both sets, one row at a time{directions}"

    @property
    def interval(self) -> tuple[float, float]:
        """Normal 95 %: rows and directions vary."""
        return normal_interval(self.value, math.hypot(self.standard_error, self.slice_error))


def energy_distance(
    *, real: Any, generated: Any, r: float = 1.0, unbiased: bool = True, block: int = BLOCK
) -> EnergyDistance:
    """Energy distance of real (N, D) and generated (M, D), N, M >= 2, over all pairs; lower is better.

    r: exponent of the distance, 0 < r < 2; the unit of the value is that of the features to the power r.
    unbiased: leave out the pairs of a row with itself, so that equal distributions give 0 on average, at any N and M.
    Costs (N + M)^2 D in float64, in the memory of float64 copies of both sets and a few blocks.
    """
    check_exponent(r)
    x, y = as_features(real, "real", 2), as_features(generated, "generated", 2)
    same_width(x, y)
    with full_precision(x.device):
        centre = mean_of_rows(x)  # distances do not change, rounding shrinks
        sums = KernelSums.of(x.double() - centre, y.to(x.device).double() - centre, riesz(r, x.shape[1]), block)
    return from_sums(sums, r=r, unbiased=unbiased)


def riesz(r: float, width: int) -> Kernel:
    """-|x - y|^r for rows of D = `width`. What rounding could have made of a copy counts as one: 0."""
    rounding = (width + 8) * torch.finfo(torch.float64).eps

    def values(products: Tensor, a: Tensor, b: Tensor) -> Tensor:
        size = a + b
        squares = products.mul_(-2).add_(size)
        return squares.masked_fill_(squares <= size.mul_(rounding), 0).pow_(r / 2).neg_()

    return values


def check_exponent(r: float) -> None:
    """Refuse exponents for which a value of 0 would not mean equal distributions."""
    if not 0 < r < 2:
        raise UsageError(f"r={r} gives no distance between distributions; use 0 < r < 2, for example r=1")


def from_sums(
    sums: KernelSums, *, r: float, unbiased: bool, slice_error: float = 0.0, slices: int = 0
) -> EnergyDistance:
    """The distance from sums of the Riesz kernel a row."""
    n, m = len(sums.real), len(sums.generated)
    within_real, within_generated = -sums.mean_real, -sums.mean_generated
    self_pairs = 0.0 if unbiased else within_real / n + within_generated / m
    return EnergyDistance(
        value=sums.squared_mmd + self_pairs,
        r=r,
        unbiased=unbiased,
        across=-float(sums.real_across.sum()) / (n * m),
        within_real=within_real,
        within_generated=within_generated,
        standard_error=sums.standard_error,
        slice_error=slice_error,
        slices=slices,
        n_real=n,
        n_generated=m,
    )
