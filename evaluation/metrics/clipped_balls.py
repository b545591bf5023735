"""Density and coverage with bounded contributions, so that one hub or one outlier cannot make or hide a result.

After Salvy et al. 2025, 2507.01761, in our wording: with r(x) the distance of a real point to its k-th nearest other
real point, and R(x) = min(r(x), median of all r),

    clipped density  = mean over y of min(#{x: |y - x| < R(x)} / k, 1)   over the same of the real points themselves
    clipped coverage = mean over x of min(#{y: |y - x| < r(x)} / k, 1)   read through its expected value, see below

What is divided by, and how coverage is read, are ours and may differ from the paper's constants: the real points of the
density are judged by balls drawn without them, whose radius is then that of the (k + 1)-th neighbour, capped alike; the
coverage is the share p of M points from the real distribution, the rest hitting nothing, that would give this value.
Both are then about 1 for equal distributions, and 0.6 where a share of 0.6 is real and the rest far away. They are no
numbers of the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import full_precision, same_width
from .clouds import BLOCK, Cloud
from .neighbours import Lists, close_pairs, inside, near_lists
from .prdc import checked


@dataclass(frozen=True)
class ClippedBalls:
    """density, coverage: calibrated, about 0 to 1, not clamped. Beside them the raw means, and each point.

    expected_raw_coverage: of M points of the real distribution, exact in any dimension.
    """

    density: float
    coverage: float
    raw_density: float
    raw_density_of_real: float
    raw_coverage: float
    expected_raw_coverage: float
    k: int
    n_real: int
    n_generated: int
    of_generated: Tensor = field(repr=False)  # float64 (M,), 0..1, before division
    of_real: Tensor = field(repr=False)  # float64 (N,), 0..1


def clipped_balls(*, real: Any, generated: Any, k: int = 5, block: int = BLOCK) -> ClippedBalls:
    """Clipped density and coverage of generated (M, D) by real (N, D), N > k + 1; higher is better.

    Errors: k below 1, too few rows, real points so often repeated that no ball holds another point.
    """
    rows, made = checked(real, "real", k + 1), checked(generated, "generated", 0)
    same_width(rows, made)
    with full_precision(rows.device):
        x = Cloud(rows)
        y = Cloud(made.to(rows.device), x.centre)
        lists = near_lists(x, x, k + 1, block)
        squared = lists.kth(k)
        ordered = squared[x.point_of].sqrt().sort().values
        median = (ordered[(len(rows) - 1) // 2] + ordered[len(rows) // 2]) / 2
        capped = squared.clamp(max=float(median.square()))
        by_real = _own_balls(x, lists, lists.kth(k + 1).clamp(max=float(median.square())))
        hits_of_x, balls_of_y = _counts(x, y, squared, capped, k, block)
    of_generated, of_real = ((count.double() / k).clamp(max=1) for count in (balls_of_y[y.point_of], hits_of_x))
    of_real = of_real[x.point_of]
    raw_real = float((by_real[x.point_of].double() / k).clamp(max=1).mean())
    if raw_real == 0:
        raise UsageError("no ball of a real point holds another one: nearly all rows are copies; remove the copies")
    raw_coverage = float(of_real.mean())
    return ClippedBalls(
        density=float(of_generated.mean()) / raw_real,
        coverage=good_share(raw_coverage, len(rows), len(made), k),
        raw_density=float(of_generated.mean()),
        raw_density_of_real=raw_real,
        raw_coverage=raw_coverage,
        expected_raw_coverage=expected_clipped_coverage(len(rows), len(made), k),
        k=k,
        n_real=len(rows),
        n_generated=len(made),
        of_generated=of_generated,
        of_real=of_real,
    )


def expected_clipped_coverage(n_real: int, n_generated: int, k: int) -> float:
    """Raw clipped coverage of one sample by another of the same continuous distribution, exact in any dimension.

    The number C of generated points nearer than the k-th of N - 1 others is negative hypergeometric:
    P(C = c) = binom(c + k - 1, c) binom(N - 1 - k + M - c, M - c) / binom(N - 1 + M, M); the value is E min(C / k, 1).
    """
    others, chance, expected, seen = n_real - 1, 1.0, 0.0, 0.0
    for j in range(1, k + 1):  # P(C = 0): the k nearest are all real
        chance *= (others - j + 1) / (others + n_generated - j + 1)
    for c in range(min(k, n_generated + 1)):
        expected += c / k * chance
        seen += chance
        chance *= (c + k) / (c + 1) * (n_generated - c) / (others - k + n_generated - c) if c < n_generated else 0.0
    return expected + (1 - seen)


def good_share(raw_coverage: float, n_real: int, n_generated: int, k: int) -> float:
    """The share of n_generated points whose `expected_clipped_coverage` is this value, linear between whole points.

    It may pass 1 where coverage is better than by chance, as of a copied set; it ends at 2.
    """
    low, high = 0, 2 * n_generated
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if expected_clipped_coverage(n_real, middle, k) <= raw_coverage else (low, middle)
    at_low, at_high = (expected_clipped_coverage(n_real, m, k) for m in (low, high))
    part = (raw_coverage - at_low) / (at_high - at_low) if at_high > at_low else 1.0
    return (low + min(max(part, 0.0), 1.0)) / n_generated if not math.isnan(part) else math.nan


def _own_balls(x: Cloud, lists: Lists, limits: Tensor) -> Tensor:
    """int64 (points,): other rows within whose limit, at most their farthest neighbour, each real point lies."""
    pairs, taken = lists.exact(all_of_them=True)
    pairs = pairs.where(taken & (pairs.low < limits[pairs.i]))
    owners = x.counts[pairs.i] - (pairs.i == pairs.j).long()
    return torch.zeros_like(x.counts).index_add_(0, pairs.j, owners)


def _counts(x: Cloud, y: Cloud, squared: Tensor, capped: Tensor, k: int, block: int) -> tuple[Tensor, Tensor]:
    """Generated rows in the ball of each real point, and capped real balls that hold each generated point."""
    hits, balls = torch.zeros_like(x.counts), torch.zeros_like(y.counts)
    limits = squared, squared.new_zeros(len(y))
    for i in range(0, len(x), block):
        for j in range(0, len(y), block):
            near = close_pairs(x, y, (i, j), limits, 4 * k * block**2 / len(x), block)
            pairs = inside(x, y, near, squared[near.i], closed=False)
            hits.index_add_(0, pairs.i, y.counts[pairs.j])
            pairs = inside(x, y, pairs, capped[pairs.i], closed=False)
            balls.index_add_(0, pairs.j, x.counts[pairs.i])
    return hits, balls
