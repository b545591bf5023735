"""Precision, recall, density and coverage of generated features against real ones.

Kynkaanniemi et al. 2019, 1904.06991, equations 1-2; Naeem et al. 2020, 2002.09797, equations 3-4. With r(x) the
distance of x to the k-th nearest other point of its own set, x real (N of them) and y generated (M of them):

    precision = share of y with some |y - x| < r(x)        recall   = share of x with some |x - y| < r(y)
    density   = mean over y of #{x: |y - x| < r(x)} / k    coverage = share of x with some |x - y| < r(x)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features, full_precision, same_width
from .clouds import BLOCK, Cloud
from .duplicates import duplicated_share
from .neighbours import Pairs, close_pairs, inside, squared_radii


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
class BallSettings:
    """What a published protocol of precision and recall fixes; its numbers are comparable with its own only."""

    k: int
    closed: bool
    features: str
    source: str


SETTINGS: dict[str, BallSettings] = {
    "kynk-vgg": BallSettings(3, True, "VGG-16, second fully connected layer, 4096", "Kynkaanniemi et al. 1904.06991"),
    "adm-inception": BallSettings(3, True, "Inception-2015 pool3, 2048", "guided-diffusion evaluator, 2105.05233"),
    "prdc": BallSettings(5, False, "VGG-16, second fully connected layer, 4096", "Naeem et al. 2002.09797, prdc 0.2"),
}


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


def smallest_k(n_real: int, n_generated: int, null_coverage: float = 0.95) -> int:
    """The smallest k whose `expected_coverage` reaches null_coverage: 5 for 0.95 and N = M.

    Naeem et al. choose k so; a larger k would let nearly every ball be hit, also by poor samples.
    """
    if not 0 < null_coverage < 1:
        raise UsageError(f"null_coverage={null_coverage} is no share below 1; use 0.95")
    if n_real < 2 or n_generated < 1:
        raise UsageError(f"{n_real} real and {n_generated} generated rows have no neighbours; give more pictures")
    for k in range(1, n_real):
        if expected_coverage(n_real, n_generated, k) >= null_coverage:
            return k
    return n_real - 1


def radii(features: Any, k: int = 5, *, block: int = BLOCK) -> Radii:
    """Distance of each row of features (N, D) to its k-th nearest other row, N > k. Costs N^2/2 row products."""
    rows = checked(features, "features", k)
    with full_precision(rows.device):
        return Radii(squared_radii(Cloud(rows), k, block), k)


def prdc(
    *,
    real: Any,
    generated: Any,
    k: int | Literal["auto"] = 5,
    closed: bool = False,
    real_radii: Radii | None = None,
    recall: bool = True,
    null_coverage: float = 0.95,
    block: int = BLOCK,
) -> PRDC:
    """Precision, recall, density and coverage, exact to float64, in O(block^2 + N + M) memory.

    real: (N, D), generated: (M, D), any float dtype, array or tensor, N > k and M > k.
    k: "auto" is `smallest_k` for null_coverage. Numbers of different k cannot be compared; see SETTINGS.
    closed: a distance equal to a radius counts as inside (`<=`, as Kynkaanniemi et al.; the prdc package has `<`).
    real_radii: from `radii(real, k)`, when one reference serves many runs. recall=False spares the generated radii.
    """
    real, generated = as_features(real, "real", 2), as_features(generated, "generated")
    if k == "auto":
        k = smallest_k(len(real), len(generated), null_coverage)
    real = checked(real, "real", k, looked_at=True)
    generated = checked(generated, "generated", k if recall else 0, looked_at=True)
    same_width(real, generated)
    generated = generated.to(real.device)
    known = checked_radii(real_radii, real, k)
    with full_precision(real.device):
        x = Cloud(real)
        y = Cloud(generated, x.centre)
        r_real = squared_radii(x, k, block) if known is None else known.squared.to(real.device)
        r_generated = y.per_point(squared_radii(y, k, block)) if recall else None
        balls, covered, recalled = _cross(x, y, x.per_point(r_real), r_generated, k, closed, block)
    balls, covered, recalled = balls[y.point_of], covered[x.point_of], recalled[x.point_of]
    return PRDC(
        precision=_mean(balls > 0),
        recall=_mean(recalled) if recall else float("nan"),
        density=_mean(balls) / k,
        coverage=_mean(covered),
        expected_density=1.0,
        expected_coverage=expected_coverage(len(real), len(generated), k),
        k=k,
        closed=closed,
        n_real=len(real),
        n_generated=len(generated),
        duplicates_real=duplicated_share(x.groups),
        duplicates_generated=duplicated_share(y.groups),
        balls=balls,
        covered=covered,
        recalled=recalled,
    )


def _cross(
    x: Cloud, y: Cloud, r_real: Tensor, r_generated: Tensor | None, k: int, closed: bool, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """How many real balls hold each generated point, which real balls are hit, which real points lie in a ball of a y.

    Radii and answers are of points, the different rows.
    """
    balls = torch.zeros(len(y), dtype=torch.int64, device=r_real.device)
    covered, recalled = (torch.zeros(len(x), dtype=torch.bool, device=r_real.device) for _ in range(2))
    limits = r_real, r_real.new_zeros(len(y)) if r_generated is None else r_generated
    for i in range(0, len(x), block):
        waiting: list[Pairs] = []  # most points are recalled without them
        for j in range(0, len(y), block):
            pairs = close_pairs(x, y, (i, j), limits, 4 * k * block**2 / len(x), block)
            hits = inside(x, y, pairs, r_real[pairs.i], closed)
            balls.index_add_(0, hits.j, x.counts[hits.i])
            covered[hits.i] = True
            if r_generated is not None:
                recalled[pairs.i[pairs.high < r_generated[pairs.j]]] = True
                waiting.append(pairs.where((pairs.low <= r_generated[pairs.j]) & ~recalled[pairs.i]))
        for pairs in waiting:
            pairs = pairs.where(~recalled[pairs.i])
            recalled[inside(x, y, pairs, limits[1][pairs.j], closed).i] = True
    return balls, covered, recalled


def checked(features: Any, name: str, k: int, looked_at: bool = False) -> Tensor:
    """A float matrix (N, D) whose rows have k other rows; looked_at: it is known to be finite."""
    if not isinstance(k, int) or k < 0 or (k == 0 and name != "generated"):
        raise UsageError(f"k={k!r} is no number of neighbours; use k=5 or k='auto'")
    if looked_at and len(features) > k:
        return features
    return as_features(features, name, at_least=k + 1)


def checked_radii(known: Radii | None, rows: Tensor, k: int, name: str = "real") -> Radii | None:
    """The same radii, when they are of these rows and this k."""
    if known is not None and (known.k != k or len(known.squared) != len(rows)):
        raise UsageError(
            f"{name}_radii are of {len(known.squared)} rows with k={known.k}, "
            f"not of {len(rows)} with k={k}; call radii({name}, k={k})"
        )
    return known


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
