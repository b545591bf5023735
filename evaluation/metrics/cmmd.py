"""CMMD: the maximum mean discrepancy of directions of features, with a kernel far wider than their distances.

    1000 MMD^2,  k(x, y) = exp(-|x - y|^2 / (2 sigma^2)),  x and y of unit length     Jayasumana et al. 2023, 2401.09603

Unit vectors are at most 2 apart, so with sigma = 10 the kernel is a straight line: to first order CMMD is
1000 / sigma^2 |mean x - mean y|^2 and sees nothing but the means. Both are reported, side by side.
The name belongs to CLIP ViT-L/14 embeddings of 336-pixel pictures; on other features it is an MMD of directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import UsageError
from ..arrays import as_features, full_precision, same_width
from .directions import MeanDirection, unit_rows
from .kernel_distance import gaussian
from .kernel_sums import BLOCK, KernelSums, normal_interval

_UNIT = 1000  # published numbers are 1000 MMD^2


@dataclass(frozen=True)
class CMMD:
    """1000 MMD^2 of unit rows, what equal distributions would give, and what the means alone give."""

    value: float
    null: float  # expected for equal distributions: the diagonal of the biased estimate, 0 without it
    mean_difference: float  # 1000 / sigma^2 |mean x - mean y|^2, biased like the default
    standard_error: float  # jackknife
    sigma: float
    unbiased: bool
    n_real: int
    n_generated: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, normal, around `value`; it has the bias `null` of the value."""
        return normal_interval(self.value, self.standard_error)

    @property
    def interval_kind(self) -> str:
        """How the interval was made."""
        return "normal 95 %, jackknife of both sets, one row at a time"


def cmmd(*, real: Any, generated: Any, sigma: float = 10.0, unbiased: bool = False, block: int = BLOCK) -> CMMD:
    """1000 MMD^2 of the directions of features real (N, D) and generated (M, D), N, M >= 2; lower is better.

    Rows are divided by their length here. The default is the published, biased estimate, in which every row meets
    itself; equal distributions give 1000 ((1 - mean k_xx) / N + (1 - mean k_yy) / M). unbiased=True has no such term.

    (N + M)^2 D flops in float64 and a float64 copy of the features: 20 s for N = M = 10,000, D = 2048 on one core.
    """
    x, y = as_features(real, "real", 2), as_features(generated, "generated", 2)
    same_width(x, y)
    if not sigma > 0:
        raise UsageError(f"sigma={sigma} is no width of a kernel; use sigma=10")
    with full_precision(x.device):
        x, y = unit_rows(x, "real"), unit_rows(y, "generated").to(x.device)
        sums = KernelSums.of(x, y, gaussian(sigma), block)
        difference = mean_difference(real=MeanDirection.of(x), generated=MeanDirection.of(y), sigma=sigma)
    # kernel values are less one, as is each mean; a row that meets itself adds nothing but counts as a pair
    null = 0.0 if unbiased else -sums.mean_real / len(x) - sums.mean_generated / len(y)
    return CMMD(
        value=_UNIT * (sums.squared_mmd + null),
        null=_UNIT * null,
        mean_difference=difference,
        standard_error=_UNIT * sums.standard_error,
        sigma=sigma,
        unbiased=unbiased,
        n_real=len(x),
        n_generated=len(y),
    )


def mean_difference(*, real: MeanDirection, generated: MeanDirection, sigma: float = 10.0) -> float:
    """CMMD to first order, 1000 / sigma^2 |mean x - mean y|^2, from D numbers a set; within 2 % at sigma = 10."""
    if len(real.total) != len(generated.total):
        raise UsageError(
            f"real has {len(real.total)} features and generated {len(generated.total)}; use one extractor for both"
        )
    return _UNIT / sigma**2 * float((real.mean - generated.mean.to(real.total.device)).square().sum())
