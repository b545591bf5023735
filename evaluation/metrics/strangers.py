"""How well generated pictures can be told from real ones by a density of their features: strangers score low.

    score(v) = (log v - m)^T C^-1 (log v - m) / 2        a Gaussian fitted to half of the real rows, C shrunk

AUROC of generated rows against the other real half: 0.5 cannot be told apart, 1 are all strangers, below 0.5 are closer
to the middle than real ones, "too clean". Made for the score norms of Mahmood et al. 2021, 2010.13132 (the feature
space `score-norms`), which are positive and of many scales, hence the logarithm; rows with negative entries are taken
as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features, same_width


@dataclass(frozen=True)
class Strangers:
    """value: AUROC in 0..1, ties half. interval: DeLong et al. 1988, normal 95 %, within 0..1."""

    value: float
    interval: tuple[float, float]
    average_precision: float  # of finding generated rows among real ones
    fpr95: float  # share of real rows that score above the level which 95 % of generated rows exceed
    shrinkage: float
    n_fitted: int
    null: float = 0.5
    interval_kind: str = "normal 95 %, DeLong; the fitted density fixed"


def strangers(*, real: Any, generated: Any, seed: int = 0) -> Strangers:
    """AUROC of generated (M, D) against half of real (N, D), N >= 4 (D + 1), M >= 2, by a density of the other half."""
    x, y = as_features(real, "real"), as_features(generated, "generated", 2)
    same_width(x, y)
    if len(x) < 4 * (x.shape[1] + 1):
        raise UsageError(f"{len(x)} real rows are few for {x.shape[1]} features; give {4 * (x.shape[1] + 1)} or more")
    logs = bool((x > 0).all()) and bool((y > 0).all())
    x, y = (rows.double().cpu().log() if logs else rows.double().cpu() for rows in (x, y))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    fitted, held = x[order[: len(x) // 2]], x[order[len(x) // 2 :]]
    density = _Density(fitted)
    known, strange = density.score(held).numpy(), density.score(y).numpy()
    value, error = auroc(positive=strange, negative=known)
    return Strangers(
        value=value,
        interval=(max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error)),
        average_precision=_average_precision(strange, known),
        fpr95=float((known >= np.quantile(strange, 0.05)).mean()),
        shrinkage=density.shrinkage,
        n_fitted=len(fitted),
    )


class _Density:
    """A Gaussian whose covariance is shrunk towards a multiple of one by Ledoit & Wolf 2004 (J. Multiv. Anal. 88, 365).

    Each feature has its mean and deviation taken out first.
    """

    def __init__(self, rows: Tensor):
        self.mean, self.deviation = rows.mean(0), rows.std(0).clamp(min=1e-12)
        z = (rows - self.mean) / self.deviation
        n, width = z.shape
        covariance = z.T @ z / n
        target = covariance.diagonal().mean() * torch.eye(width, dtype=z.dtype)
        apart = float((covariance - target).square().sum())
        noise = float((z.square().sum(1) ** 2).sum() / n - covariance.square().sum()) / n
        self.shrinkage = min(1.0, noise / apart) if apart > 0 else 1.0
        self.factor = torch.linalg.cholesky((1 - self.shrinkage) * covariance + self.shrinkage * target)

    def score(self, rows: Tensor) -> Tensor:
        """float64 (N,): half the squared Mahalanobis distance; high for strangers."""
        z = (rows - self.mean) / self.deviation
        return torch.linalg.solve_triangular(self.factor, z.T, upper=False).square().sum(0) / 2


def auroc(*, positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """(probability that a positive scores above a negative, ties half; its standard error, DeLong et al. 1988)."""
    ordered_n, ordered_p = np.sort(negative), np.sort(positive)

    def below(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
        less, upto = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
        return (less + upto) / (2 * len(ordered))

    of_positive, of_negative = below(positive, ordered_n), 1 - below(negative, ordered_p)
    variance = of_positive.var(ddof=1) / len(positive) + of_negative.var(ddof=1) / len(negative)
    return float(of_positive.mean()), math.sqrt(variance)


def _average_precision(positive: np.ndarray, negative: np.ndarray) -> float:
    """Mean over positives of the precision at their score; equal scores enter together."""
    scores = np.concatenate([positive, negative])
    found = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])
    levels, group = np.unique(-scores, return_inverse=True)
    hits = np.bincount(group, found, len(levels))
    precision = np.cumsum(hits) / np.cumsum(np.bincount(group, minlength=len(levels)))
    return float((precision * hits).sum() / hits.sum())
