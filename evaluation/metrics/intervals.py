"""Intervals for means: of yes and no, of numbers, and of differences between pairs.

Distances between distributions have none of these: the duplicates that a bootstrap draws act as a smaller sample.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from ...errors import UsageError


class Difference(NamedTuple):
    """Mean of a - b over pairs, and its confidence interval."""

    mean: float
    low: float
    high: float


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a probability after `successes` in `trials`. Wilson 1927, J. Am. Stat. Assoc. 22, 209.

    (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n). No trials: (0, 1).
    """
    if not 0 <= successes <= trials:
        raise UsageError(f"{successes} successes in {trials} trials; successes must lie between 0 and the trials")
    if trials == 0:
        return 0.0, 1.0
    z, p = _z(confidence), successes / trials
    centre = p + z * z / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + (z / (2 * trials)) ** 2)
    low, high = ((centre + sign * half) / (1 + z * z / trials) for sign in (-1, 1))
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)


def mean_interval(values: Any, confidence: float = 0.95) -> tuple[float, float]:
    """Normal interval of the mean of independent values (N,): mean +- z s / sqrt(N). Fewer than two: (nan, nan)."""
    x = np.asarray(values, np.float64)
    half = _z(confidence) * _standard_error(x)
    return float(x.mean()) - half if x.size else math.nan, float(x.mean()) + half if x.size else math.nan


def unpaired_difference(a: Any, b: Any, confidence: float = 0.95) -> Difference:
    """Mean of a (N,) less mean of b (M,), independent samples of unequal spread (Welch), normal interval."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not (x.size and y.size):
        return Difference(math.nan, math.nan, math.nan)
    mean = float(x.mean() - y.mean())
    half = _z(confidence) * math.hypot(_standard_error(x), _standard_error(y))
    return Difference(mean, mean - half, mean + half)


def paired_difference(a: Any, b: Any, confidence: float = 0.95) -> Difference:
    """Mean of a - b, where a[i] and b[i] have the same caption and seed. Pairs that are nan in both are left out.

    a, b: (N,) numbers. Of 0 and 1: Bonett & Price 2012 (J. Educ. Behav. Stat. 37, 479): one disagreement added to
    each side, so that the interval of two equal results is not empty. Other numbers: mean +- z s / sqrt(N).
    Errors: different lengths, a nan on one side only (other captions), no pairs.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise UsageError(f"pairs need values (N,) twice, got {x.shape} and {y.shape}; use the same captions and seeds")
    known = ~np.isnan(x)
    if (known != ~np.isnan(y)).any():
        raise UsageError("pairs differ in what their captions state; use the same captions and seeds on both sides")
    d = (x - y)[known]
    if not d.size:
        raise UsageError("there are no pairs to compare; no caption states this")
    mean = float(d.mean())
    if not np.isin(np.concatenate([x[known], y[known]]), (0, 1)).all():
        half = _z(confidence) * _standard_error(d)
        return Difference(mean, mean - half, mean + half)
    more, less = (int((d == sign).sum()) + 1 for sign in (1, -1))
    n = d.size + 2
    centre = (more - less) / n
    half = _z(confidence) * math.sqrt(((more + less) / n - centre**2) / n)
    return Difference(mean, max(-1.0, centre - half), min(1.0, centre + half))


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise UsageError(f"confidence {confidence} is not between 0 and 1; use 0.95")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _standard_error(x: np.ndarray) -> float:
    return float(x.std(ddof=1)) / math.sqrt(x.size) if x.size > 1 else math.nan
