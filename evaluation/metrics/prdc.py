"""Precision, recall, density and coverage of generated features against real ones.

Kynkaanniemi et al. 2019, 1904.06991, equations 1-2; Naeem et al. 2020, 2002.09797, equations 3-4. With r(x) the
distance of x to the k-th nearest other point of its own set, x real (N of them) and y generated (M of them):

    precision = share of y with some |y - x| < r(x)        recall   = share of x with some |x - y| < r(y)
    density   = mean over y of #{x: |y - x| < r(x)} / k    coverage = share of x with some |x - y| < r(x)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features, full_precision, same_width
from .duplicates import duplicated_share
from .neighbours import BLOCK, Cloud, lower_bounds, pairs_inside, squared_radii


@dataclass(frozen=True)
class Radii:
    """Distances to the k-th nearest other row, kept as exact squares. squared: float64 (N,)."""

    squared: Tensor
    k: int

    @property
    def distances(self) -> Tensor:
        """float64 (N,)."""
        return self.squared.sqrt()


@dataclass(frozen=True)
class PRDC:
    """The four numbers, what two samples of one distribution would give, and the verdict on every point.

    A copy of an earlier row counts as a duplicate; k of them give a ball of radius zero, which no point lies inside.
    """

    precision: float
    recall: float  # nan when it was not asked for
    density: float
    coverage: float
    expected_density: float
    expected_coverage: float
    k: int
    closed: bool
    n_real: int
    n_generated: int
    duplicates_real: float  # share of rows
    duplicates_generated: float
    balls: Tensor = field(repr=False)  # int64 (M,): real balls that hold each generated point
    covered: Tensor = field(repr=False)  # bool (N,)
    recalled: Tensor = field(repr=False)  # bool (N,)


def expected_coverage(n_real: int, n_generated: int, k: int) -> float:
    """Coverage of one sample by another of the same continuous distribution, exact in any dimension.

    x_i stays uncovered when its k nearest among all N + M - 1 other points are real:
    1 - prod_{j=1..k} (N - j) / (N + M - j), which tends to 1 - 2^-k for N = M.
    """
    uncovered = 1.0
    for j in range(1, k + 1):
        uncovered *= (n_real - j) / (n_real + n_generated - j)
    return 1 - uncovered


def radii(features: Any, k: int = 5, *, block: int = BLOCK) -> Radii:
    """Distance of each row of features (N, D) to its k-th nearest other row, N > k. Costs N^2/2 row products."""
    rows = _checked(features, "features", k)
    with full_precision(rows.device):
        return Radii(squared_radii(Cloud(rows), k, block), k)


def prdc(
    *,
    real: Any,
    generated: Any,
    k: int = 5,
    closed: bool = False,
    real_radii: Radii | None = None,
    recall: bool = True,
    block: int = BLOCK,
) -> PRDC:
    """Precision, recall, density and coverage, exact to float64, in O(block^2 + N + M) memory.

    real: (N, D), generated: (M, D), any float dtype, array or tensor, N > k and M > k.
    closed: a distance equal to a radius counts as inside (`<=`, as Kynkaanniemi et al.; the prdc package has `<`).
    real_radii: from `radii(real, k)`, when one reference serves many runs. recall=False spares the generated radii.
    """
    real, generated = _checked(real, "real", k), _checked(generated, "generated", k if recall else 0)
    same_width(real, generated)
    generated = generated.to(real.device)
    if real_radii is not None and (real_radii.k != k or len(real_radii.squared) != len(real)):
        raise UsageError(
            f"real_radii are of {len(real_radii.squared)} rows with k={real_radii.k}, "
            f"not of {len(real)} with k={k}; call radii(real, k={k})"
        )
    with full_precision(real.device):
        x = Cloud(real)
        y = Cloud(generated, x.centre)
        r_real = squared_radii(x, k, block) if real_radii is None else real_radii.squared.to(real.device)
        r_generated = squared_radii(y, k, block) if recall else None
        balls, covered, recalled = _cross(x, y, r_real, r_generated, closed, block)
        duplicates = duplicated_share(x.groups), duplicated_share(y.groups)
    return PRDC(
        precision=_mean(balls > 0),
        recall=_mean(recalled) if recall else float("nan"),
        density=_mean(balls) / k,
        coverage=_mean(covered),
        expected_density=1.0,
        expected_coverage=expected_coverage(len(x), len(y), k),
        k=k,
        closed=closed,
        n_real=len(x),
        n_generated=len(y),
        duplicates_real=duplicates[0],
        duplicates_generated=duplicates[1],
        balls=balls,
        covered=covered,
        recalled=recalled,
    )


def _cross(
    x: Cloud, y: Cloud, r_real: Tensor, r_generated: Tensor | None, closed: bool, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """How many real balls hold each y, and which x lie in a ball shared with, or of, some y."""
    balls = torch.zeros(len(y), dtype=torch.int64, device=r_real.device)
    covered = torch.zeros(len(x), dtype=torch.bool, device=r_real.device)
    recalled = torch.zeros_like(covered)
    for i, j, low in lower_bounds(x, y, block):
        rows, columns = slice(i, i + low.shape[0]), slice(j, j + low.shape[1])
        inside_i, inside_j = pairs_inside(x, y, (i, j), low, r_real[rows, None], closed)
        balls += torch.bincount(inside_j, minlength=len(y))
        covered[inside_i] = True
        if r_generated is not None:
            inside_i, _ = pairs_inside(x, y, (i, j), low, r_generated[None, columns], closed, wanted=~recalled[rows])
            recalled[inside_i] = True
    return balls, covered, recalled


def _checked(features: Any, name: str, k: int) -> Tensor:
    if k < 0 or (k == 0 and name != "generated"):
        raise UsageError(f"k={k} is no number of neighbours; use k=5")
    return as_features(features, name, at_least=k + 1)


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
