"""Frechet distance between two sets of features, each taken as a Gaussian. With N - 1 covariances,

    |mu_r - mu_g|^2 + Tr S_r + Tr S_g - 2 Tr (S_r S_g)^(1/2)        Heusel et al. 2017, 1706.08500, equation 6

On Inception features it is called FID; on others it is not. No matrix square root is formed: for any factors
S = F^T F the last trace is the sum of the singular values of F_r F_g^T, and of sqrt(eigenvalues of F_r S_g F_r^T).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features, full_precision, mean_of_rows, same_width
from .moments import Moments

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Frechet:
    """A Frechet distance and how it came about. Rounding can make the distance of equal sets slightly negative."""

    value: float
    mean_term: float
    covariance_term: float
    route: str  # "cross-gram", "cholesky" or "eigen"
    rank_real: int
    rank_generated: int
    numerical_floor: float  # a value within this of zero is zero as far as rounding lets us see


def frechet_distance(*, real: Any, generated: Any) -> float:
    """Frechet distance of features real (N, D) and generated (M, D), N, M >= 2; lower is better, 0 for equal moments.

    Biased: two samples of one distribution give about c / N, so never compare different N. Not clamped at zero.
    """
    return frechet_from_features(real=real, generated=generated).value


def frechet_from_features(*, real: Any, generated: Any) -> Frechet:
    """The same with its parts. Sets with fewer than D + 1 rows go through their rows, never through a covariance."""
    x, y = as_features(real, "real", 2), as_features(generated, "generated", 2)
    same_width(x, y)
    y = y.to(x.device)
    if min(len(x), len(y)) > x.shape[1]:
        return frechet_from_moments(real=Moments.of(x), generated=Moments.of(y))
    with full_precision(x.device):
        mean_x, mean_y = mean_of_rows(x), mean_of_rows(y)
        a, b = _triangle(x, mean_x), _triangle(y, mean_y)
        singular = torch.linalg.svdvals(a @ b.T)
        traces = float(a.square().sum() + b.square().sum())
        ranks = min(len(x) - 1, x.shape[1]), min(len(y) - 1, x.shape[1])
        floor = _EPS * (2 * len(singular) * float(singular.sum()) + traces)
        return _assemble(mean_x, mean_y, traces, float(singular.sum()), floor, "cross-gram", ranks)


def frechet_from_moments(*, real: Moments, generated: Moments) -> Frechet:
    """The same from mean and covariance alone: Cholesky and eigenvalues, or eigenvectors where one is singular."""
    if len(real.origin) != len(generated.origin):
        raise UsageError(
            f"real has {len(real.origin)} features and generated {len(generated.origin)}; use one extractor for both"
        )
    cov_r, cov_g = real.covariance, generated.covariance.to(real.M2.device)
    mean_r, mean_g = real.mean, generated.mean.to(real.M2.device)
    traces = float(cov_r.trace() + cov_g.trace())
    with full_precision(cov_r.device):
        factor_r, factor_g = _cholesky(cov_r), _cholesky(cov_g)
        if factor_r is not None and factor_g is not None:
            eigenvalues = torch.linalg.eigvalsh(factor_r.T @ cov_g @ factor_r)
            roots = eigenvalues.clamp(min=0).sqrt()  # a negative eigenvalue is rounding
            error = 2 * _EPS * float(eigenvalues.abs().max())  # of each eigenvalue
            floor = 2 * float((error / roots).clamp(max=error**0.5).sum()) + _EPS * traces
            route = "cholesky"
        else:
            factor_r = _eigen_factor(cov_r) if factor_r is None else factor_r
            factor_g = _eigen_factor(cov_g) if factor_g is None else factor_g
            roots = torch.linalg.svdvals(factor_r.T @ factor_g)
            floor = _EPS * (2 * len(roots) * float(roots.sum()) + traces)
            route = "eigen"
        ranks = factor_r.shape[1], factor_g.shape[1]
        return _assemble(mean_r, mean_g, traces, float(roots.sum()), floor, route, ranks)


def _assemble(
    mean_r: Tensor, mean_g: Tensor, traces: float, root_trace: float, floor: float, route: str, ranks: tuple[int, int]
) -> Frechet:
    mean_term, covariance_term = float((mean_r - mean_g).square().sum()), traces - 2 * root_trace
    return Frechet(mean_term + covariance_term, mean_term, covariance_term, route, *ranks, floor)


def _triangle(rows: Tensor, mean: Tensor, batch: int = 4096) -> Tensor:
    """F (at most D rows) with F^T F = covariance: the scaled rows themselves, or R of their QR, batch by batch."""
    scale = (len(rows) - 1) ** -0.5
    if len(rows) <= rows.shape[1]:
        return (rows.double() - mean) * scale
    factor = mean.new_zeros(0, rows.shape[1])
    for part in rows.split(batch):
        stacked = torch.cat([factor, (part.double() - mean) * scale])
        factor = torch.linalg.qr(stacked, mode="r").R if len(stacked) > rows.shape[1] else stacked
    return factor


def _cholesky(covariance: Tensor) -> Tensor | None:
    """L with L L^T = covariance, or None where the covariance is singular to working precision."""
    factor, info = torch.linalg.cholesky_ex(covariance)
    pivots = factor.diagonal().square()
    return None if int(info) or bool(pivots.min() <= len(pivots) * _EPS * pivots.max()) else factor


def _eigen_factor(covariance: Tensor) -> Tensor:
    """(D, rank) factor A with A A^T = covariance, without the directions in which there is no spread."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > len(values) * _EPS * values.max().clamp(min=0)
    return vectors[:, kept] * values[kept].sqrt()
