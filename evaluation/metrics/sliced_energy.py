"""Energy distance by slices: in one dimension a sort is enough, and the mean over directions is the distance itself.

    E|<u, x>|^r = G |x|^r over unit vectors u, G = Gamma(d/2) Gamma((r + 1)/2) / (sqrt(pi) Gamma((d + r)/2))
    E_r(X, Y) = (1/G) mean over u of E_r(<u, X>, <u, Y>)        Hertrich et al. 2023, 2305.11463

In one dimension with r = 1, E_1 = 2 integral (F_X - F_Y)^2, which a sort gives in O((N + M) log(N + M)), and so it
gives the derivative of E_1 in a point: its ranks among the one and among the other set. For other r no such way is
known here; `energy_distance` has them over all pairs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features, full_precision, mean_of_rows, same_width
from .kernel_sums import KernelSums
from .riesz import EnergyDistance, check_exponent, from_sums

_GROUPS = 16  # independent groups of directions that a standard error is made of


def slice_constant(dimension: int, r: float = 1.0) -> float:
    """G: the mean of |<u, x>|^r over unit vectors u, for |x| = 1, in `dimension` dimensions."""
    half = dimension / 2
    return math.exp(math.lgamma(half) + math.lgamma((r + 1) / 2) - math.lgamma(half + r / 2)) / math.sqrt(math.pi)


def directions(dimension: int, count: int, generator: torch.Generator, *, orthogonal: bool = True) -> Tensor:
    """Unit vectors float64 (count, dimension), on the CPU. orthogonal: in groups of at most `dimension` (by QR)."""
    if not orthogonal:
        drawn = torch.randn(count, dimension, generator=generator, dtype=torch.float64)
        return drawn / drawn.norm(dim=1, keepdim=True)
    parts = []
    for first in range(0, count, dimension):
        width = min(dimension, count - first)
        drawn = torch.randn(dimension, width, generator=generator, dtype=torch.float64)
        parts.append(torch.linalg.qr(drawn).Q.T)  # its sign does not matter to an energy
    return torch.cat(parts)


def sliced_energy_distance(
    *,
    real: Any,
    generated: Any,
    r: float = 1.0,
    slices: int = 1024,
    orthogonal: bool = True,
    unbiased: bool = True,
    seed: int = 0,
) -> EnergyDistance:
    """An unbiased estimate of `energy_distance` (r = 1) of real (N, D) and generated (M, D), N, M >= 2.

    slices: directions. orthogonal: groups of them at right angles; the groups are independent, so their spread gives
    `slice_error`, while `standard_error` is that of the rows. Costs (N + M) D a slice and a sort, in float64.
    """
    check_exponent(r)
    if r != 1:
        raise UsageError(f"slices with r={r} have no fast sum; use r=1, or energy_distance(r={r}) over all pairs")
    if slices < 2:
        raise UsageError(f"slices={slices} says nothing about its own error; use 2 or more, for example 1024")
    x, y = as_features(real, "real", 2), as_features(generated, "generated", 2)
    same_width(x, y)
    y, dimension = y.to(x.device), x.shape[1]
    width = max(1, min(dimension, slices // _GROUPS)) if orthogonal else math.ceil(slices / _GROUPS)
    generator = torch.Generator().manual_seed(seed)
    groups: list[tuple[int, float]] = []
    with full_precision(x.device):
        centre = mean_of_rows(x)
        totals = centre.new_zeros(2, len(x) + len(y))
        for first in range(0, slices, width):
            u = directions(dimension, min(width, slices - first), generator, orthogonal=orthogonal).to(x.device)
            sums = row_sums(_projected(x, centre, u), _projected(y, centre, u)).sum(1)
            totals += sums
            groups.append((len(u), _energy(sums / len(u), len(x), unbiased)))
    scale = 1 / slice_constant(dimension)
    return from_sums(
        _kernel_sums(totals * (scale / slices), len(x)),
        r=r,
        unbiased=unbiased,
        slice_error=scale * _error_of_mean(groups),
        slices=slices,
    )


def row_sums(x: Tensor, y: Tensor) -> Tensor:
    """Sums of the distances of each number of x (P, N) and y (P, M) to all x and to all y, row by row: (2, P, N + M).

    Of a sorted list with c values up to z and their sum s, sum_j |z - x_j| = z (2 c - N) + sum_j x_j - 2 s.
    """
    z, order = torch.cat([x, y], dim=1).sort(dim=1)
    found = []
    for chosen in (order < x.shape[1], order >= x.shape[1]):
        count, upto = chosen.cumsum(1), torch.where(chosen, z, 0).cumsum(1)
        sums = z * (2 * count - count[:, -1:]) + upto[:, -1:] - 2 * upto
        found.append(torch.empty_like(sums).scatter_(1, order, sums))
    return torch.stack(found)


def _projected(rows: Tensor, centre: Tensor, u: Tensor, block: int = 1024) -> Tensor:
    """<u_p, row_n - centre>, (P, N), without a float64 copy of all rows."""
    return torch.cat([u @ (part.double() - centre).T for part in rows.split(block)], dim=1)


def _kernel_sums(sums: Tensor, n: int) -> KernelSums:
    """Of the kernel -|x - y|, from sums of distances (2, N + M) to all x and to all y."""
    to_x, to_y = -sums
    return KernelSums(to_x[:n], to_y[n:], to_y[:n], to_x[n:])


def _energy(sums: Tensor, n: int, unbiased: bool) -> float:
    return from_sums(_kernel_sums(sums, n), r=1, unbiased=unbiased).value


def _error_of_mean(groups: list[tuple[int, float]]) -> float:
    """Standard error of the weighted mean of independent groups; nan of one."""
    if len(groups) < 2:
        return math.nan
    total = sum(size for size, _ in groups)
    mean = sum(size * value for size, value in groups) / total
    spread = sum((size / total) ** 2 * (value - mean) ** 2 for size, value in groups)
    return math.sqrt(spread * len(groups) / (len(groups) - 1))
