"""Kernel distance: the squared maximum mean discrepancy (MMD) of two sets of features.

Binkowski et al. 2018, 1801.01401: on Inception features, with k(x, y) = (x.y / D + 1)^3, it is called KID. It needs no
covariance, and it has no bias, so that it also serves few pictures; it may be negative.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features, full_precision, mean_of_rows, same_width
from .kernel_sums import BLOCK, Kernel, KernelSums, normal_interval


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance, raw (papers print 1000 times it), and how it came about."""

    value: float
    standard_error: float  # nan where the data cannot tell
    estimator: str  # "full" or "subsets"
    kernel: str
    n_real: int
    n_generated: int
    subset_std: float | None = None  # population deviation over subsets, which papers print: NOT the error of `value`
    subset_size: int | None = None
    subset_values: tuple[float, ...] = field(default=(), repr=False)
    seed: int | None = None  # of the subsets
    notes: tuple[str, ...] = ()
    null: float = 0.0  # it has no bias, whatever N and M

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, normal."""
        return normal_interval(self.value, self.standard_error)

    @property
    def interval_kind(self) -> str:
        """How the interval was made."""
        if self.estimator == "full":
            return "normal 95 %, jackknife of both sets, one row at a time"
        return f"normal 95 %, {len(self.subset_values)} subsets of {self.subset_size} as a delete-d jackknife"


def polynomial(width: int) -> Kernel:
    """(x.y / D + 1)^3 for rows of D = `width`."""
    return lambda products, a, b: products.div_(width).add_(1).pow_(3)


def gaussian(sigma: float) -> Kernel:
    """exp(-|x - y|^2 / (2 sigma^2)), less one: a constant cancels in every MMD, and digits do not."""
    return lambda products, a, b: products.mul_(-2).add_(a).add_(b).clamp_(min=0).div_(-2 * sigma**2).expm1_()


def kernel_distance(
    *,
    real: Any,
    generated: Any,
    estimator: Literal["full", "subsets"] = "full",
    kernel: Literal["polynomial", "rbf"] = "polynomial",
    sigma: float = 10.0,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    block: int = BLOCK,
) -> KernelDistance:
    """Unbiased squared MMD of features real (N, D) and generated (M, D), N, M >= 2; lower is better.

    estimator: "full" takes all pairs and depends on no seed. "subsets" is the mean over `subsets` random subsets of
    `subset_size` rows of each set, without replacement inside one, as papers do; it needs seed, and is noisier.
    A set with fewer rows than `subset_size` lowers it to half of the smaller set, with a note.
    kernel: "rbf" is exp(-|x - y|^2 / (2 sigma^2)), sigma in the units of the features; yours to choose.

    (N + M)^2 D flops in float64 and three blocks of 8 MB: 20 s for N = M = 10,000, D = 2048 on one core.
    """
    x, y = as_features(real, "real", 2), as_features(generated, "generated", 2)
    same_width(x, y)
    y = y.to(x.device)
    of_pairs = _kernel(kernel, sigma, x.shape[1])
    if kernel == "rbf":  # distances do not see a common offset, but their digits do
        centre = mean_of_rows(x)
        x, y = x.double() - centre, y.double() - centre
    with full_precision(x.device):
        if estimator == "full":
            sums = KernelSums.of(x, y, of_pairs, block)
            return KernelDistance(sums.squared_mmd, sums.standard_error, estimator, kernel, len(x), len(y))
        if estimator != "subsets":
            raise UsageError(f"estimator={estimator!r} is unknown; use 'full' or 'subsets'")
        size, notes = _size(subset_size, subsets, min(len(x), len(y)))
        values = _over_subsets(x, y, of_pairs, size, subsets, seed, block)
    error = _error_of_mean(values, size, min(len(x), len(y)))
    return KernelDistance(
        float(np.mean(values)),
        error,
        estimator,
        kernel,
        len(x),
        len(y),
        subset_std=float(np.std(values)),
        subset_size=size,
        subset_values=values,
        seed=seed,
        notes=notes,
    )


def _kernel(name: str, sigma: float, width: int) -> Kernel:
    if name == "polynomial":
        return polynomial(width)
    if name != "rbf":
        raise UsageError(f"kernel={name!r} is unknown; use 'polynomial' or 'rbf'")
    if not sigma > 0:
        raise UsageError(f"sigma={sigma} is no width of a kernel; use a number above 0")
    return gaussian(sigma)


def _size(wanted: int, subsets: int, least: int) -> tuple[int, tuple[str, ...]]:
    """Rows of a subset, and a note where it had to be lowered. Half, because whole sets have no spread to tell of."""
    if wanted < 2 or subsets < 1:
        raise UsageError(f"{subsets} subsets of {wanted} rows say nothing; use subsets=100, subset_size=1000")
    if wanted <= least:
        return wanted, ()
    size = max(2, least // 2)
    return size, (f"subset_size {wanted} lowered to {size}: the smaller set has {least} rows",)


def _over_subsets(
    x: Tensor, y: Tensor, kernel: Kernel, size: int, subsets: int, seed: int, block: int
) -> tuple[float, ...]:
    rng = np.random.default_rng(seed)

    def chosen(rows: Tensor) -> Tensor:
        return rows[torch.from_numpy(rng.choice(len(rows), size, replace=False)).to(rows.device)]

    return tuple(KernelSums.of(chosen(x), chosen(y), kernel, block).squared_mmd for _ in range(subsets))


def _error_of_mean(values: tuple[float, ...], size: int, least: int) -> float:
    """Standard error of the mean over overlapping subsets, with n the rows of the smaller set.

    Deviation over subsets times sqrt(size / (n - size) + 1 / subsets): the delete-d jackknife (Shao & Wu 1989,
    Ann. Stat. 17, 1176), which is deviation / sqrt(number of disjoint subsets) for n >> size, and the drawing.
    """
    if len(values) < 2 or size >= least:
        return float("nan")
    return float(np.std(values, ddof=1)) * (size / (least - size) + 1 / len(values)) ** 0.5
