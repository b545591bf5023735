"""Signed Inception Distance: do generated points lie farther out around the real ones, or closer in?

Asokan & Seelamantula 2023, Spider GAN, 2305.07613. With a the mean deviation of a real feature over four, C a set of
points, s the sign of q, and d0 the median distance of a real point from the real mean:

    D_C(x)  = mean_{c in C} s (|x - c| / d0)^q
    SID(r)  = mean_x [D_generated(x) - D_real(x)],  x uniform in the cube of half-width r a around the real mean
    CSID    = sum over r of SID(r)

Positive: generated points are too spread out, or beside the real ones. Negative: they are concentrated, as after a loss
of modes. 0: no difference seen, which is no proof that there is none. Not symmetric: the cube is that of the real set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features, full_precision, mean_of_rows, same_width
from .intervals import mean_interval, unpaired_difference

ORDERS = (1, -1, -3, -5)
_BLOCK = 512


@dataclass(frozen=True)
class SID:
    """The cumulative distance (CSID) in units of `scale`^order, that of each radius, and what it was measured with."""

    value: float
    interval: tuple[float, float]
    query_error: float  # standard error from the queries alone
    by_radius: tuple[float, ...]
    radii: tuple[float, ...]
    order: int
    scale: float  # d0, in the units of the features
    half_width: float  # a
    queries: int
    seed: int
    n_real: int
    n_generated: int
    null: float = 0.0  # each real point is measured from the mean of the others, so nothing favours the real set
    of_real: np.ndarray = field(repr=False, default_factory=lambda: np.empty(0))  # (N,): share of D_real of each point
    of_generated: np.ndarray = field(repr=False, default_factory=lambda: np.empty(0))  # (M,)

    @property
    def interval_kind(self) -> str:
        """How the interval was made."""
        return "normal 95 %, over pictures and queries; the real mean and spread fixed"


def sid(
    *,
    real: Any,
    generated: Any,
    order: int = 1,
    radii: Sequence[float] = tuple(range(1, 50)),
    queries: int = 2048,
    seed: int = 0,
) -> SID:
    """Signed distance of features real (N, D), N >= 3, and generated (M, D), M >= 2; nearer to 0 is better.

    order: 1, -1, -3 or -5; the more negative, the more it looks at what is close to the cube's points.
    The same `queries` random points of the unit cube serve every radius, so all distances come from one product.
    The real rows are centred leave-one-out, x_i - mean of the others: with the plain mean, real points would lie closer
    by a share of 1 / N, which in D > N features is more than the sampling error.

    Costs queries (N + M) (2 D + 5 radii) flops in float64 and 16 D bytes a query: 10 s for
    N = M = 10,000, D = 2048 on one core, 15 s for order -5.
    """
    x, y = as_features(real, "real", 3), as_features(generated, "generated", 2)
    same_width(x, y)
    if order not in ORDERS:
        raise UsageError(f"order={order} is none of {', '.join(map(str, ORDERS))}; use order=1")
    if queries < 2 or not len(radii) or min(radii) <= 0:
        raise UsageError("SID needs at least 2 queries and radii above 0; use queries=2048, radii=range(1, 50)")
    y = y.to(x.device)
    with full_precision(x.device):
        centre = mean_of_rows(x)
        half_width = 0.25 * _mean_deviation(x, centre)
        scale = _median_distance(x, centre)
        if not (scale > 0 and half_width > 0):
            raise UsageError("real features do not vary, so that there is no cube around them; give different pictures")
        cube = np.random.default_rng(seed).uniform(-half_width, half_width, (queries, x.shape[1]))
        points = torch.from_numpy(cube).to(x.device) / scale
        near = _Potential.of(x, centre, scale * (len(x) - 1) / len(x), points, radii, order)
        far = _Potential.of(y, centre, scale, points, radii, order)
    pictures = unpaired_difference(far.of_points, near.of_points)
    per_query = far.of_queries - near.of_queries
    interval = mean_interval(per_query)
    half = float(np.hypot(pictures.high - pictures.low, interval[1] - interval[0])) / 2
    return SID(
        value=pictures.mean,
        interval=(pictures.mean - half, pictures.mean + half),
        query_error=float(per_query.std(ddof=1)) / queries**0.5,
        by_radius=tuple((far.by_radius - near.by_radius).tolist()),
        radii=tuple(radii),
        order=order,
        scale=scale,
        half_width=half_width,
        queries=queries,
        seed=seed,
        n_real=len(x),
        n_generated=len(y),
        of_real=near.of_points,
        of_generated=far.of_points,
    )


@dataclass(frozen=True)
class _Potential:
    """s (|x - c| / d0)^q, averaged over all but one thing; float64."""

    of_points: np.ndarray  # (N,): summed over radii, mean over queries
    of_queries: np.ndarray  # (Q,): summed over radii, mean over points
    by_radius: np.ndarray  # (R,): mean over queries and points

    @classmethod
    def of(
        cls, rows: Tensor, centre: Tensor, unit: float, queries: Tensor, radii: Sequence[float], order: int
    ) -> _Potential:
        """Of rows (N, D) about centre, over `unit`, seen from radius * queries (Q, D).

        |r u - c|^2 = r^2 |u|^2 - 2 r u.c + |c|^2 for every radius r, from one product of queries and points.
        """
        of_points, of_queries = queries.new_zeros(len(rows)), queries.new_zeros(len(queries))
        by_radius = queries.new_zeros(len(radii))
        for j in range(0, len(rows), _BLOCK):
            points = (rows[j : j + _BLOCK].double() - centre) / unit
            for i in range(0, len(queries), _BLOCK):
                total, sums = _block(queries[i : i + _BLOCK], points, radii, order)
                of_points[j : j + _BLOCK] += total.sum(0)
                of_queries[i : i + _BLOCK] += total.sum(1)
                by_radius += sums
        n, q, sign = len(rows), len(queries), 1 if order > 0 else -1
        arrays = (of_points / (sign * q), of_queries / (sign * n), by_radius / (sign * n * q))
        return cls(*(values.cpu().numpy() for values in arrays))


def _block(queries: Tensor, points: Tensor, radii: Sequence[float], order: int) -> tuple[Tensor, Tensor]:
    """Powers of distances: summed over radii (Q, N), and over everything else (R,)."""
    products = queries @ points.T
    norms = queries.square().sum(1)[:, None], points.square().sum(1)[None]
    total, squared, sums = torch.zeros_like(products), torch.empty_like(products), []
    for radius in radii:
        torch.add(radius**2 * norms[0] + norms[1], products, alpha=-2 * radius, out=squared)
        powers = _power(squared, order)
        total += powers
        sums.append(powers.sum())
    return total, torch.stack(sums)


def _power(squared: Tensor, order: int) -> Tensor:
    """Squared distances to distances^order, in place. 0 counts as a distance that rounding cannot tell from it."""
    floor = torch.finfo(squared.dtype).eps * len(squared)
    root = squared.clamp_(min=floor).sqrt_() if order > 0 else squared.clamp_(min=floor).rsqrt_()
    return root if abs(order) == 1 else root.pow_(abs(order))


def _mean_deviation(rows: Tensor, centre: Tensor, block: int = 256) -> float:
    """Mean over features of their deviation (N - 1)."""
    squares = torch.zeros_like(centre)
    for part in rows.split(block):
        squares += (part.double() - centre).square_().sum(0)
    return float((squares / (len(rows) - 1)).sqrt().mean())


def _median_distance(rows: Tensor, centre: Tensor, block: int = 256) -> float:
    squares = [(part.double() - centre).square_().sum(1) for part in rows.split(block)]
    return float(torch.cat(squares).median().sqrt())
