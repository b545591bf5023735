"""Quantiles of the beta distribution, which SciPy has and torch has not: for one grid, so small and in float64."""

from __future__ import annotations

import math

from ..errors import UsageError

_TINY = 1e-300


def beta_quantile(share: float, a: float, b: float) -> float:
    """x in [0, 1] with I_x(a, b) = share, the root of the regularised incomplete beta function.

    share: in [0, 1]. a, b: both above 0, else UsageError. Good to a few units of the last place, at either end: below
    one half x itself is found, above it 1 - x.
    """
    if a <= 0 or b <= 0:
        raise UsageError(f"the beta distribution needs a and b above 0, not {a} and {b}")
    if share <= 0 or share >= 1:
        return float(share >= 1)
    if share > incomplete_beta(0.5, a, b):
        return 1 - _lower_quantile(1 - share, b, a)
    return _lower_quantile(share, a, b)


def _lower_quantile(share: float, a: float, b: float) -> float:
    """A quantile below one half, by Newton's method on log I_x in log x, which is nearly a line of slope a there;
    where a step leaves the bracket, by halving it instead."""
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    low, high = -745.0, math.log(0.5)
    y = min(high, (math.log(share * a) + log_beta) / a)
    for _ in range(100):
        x = math.exp(y)
        value = incomplete_beta(x, a, b)
        low, high = (y, high) if value < share else (low, y)
        slope = math.exp(a * y + (b - 1) * math.log1p(-x) - log_beta) / value if value > 0 else 0.0
        step = math.log(share / value) / slope if slope > 0 else math.inf
        if abs(step) <= 1e-15 * max(1.0, abs(y)):
            break
        y = y + step if low <= y + step <= high else (low + high) / 2
    return math.exp(y)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b), the distribution function of the beta distribution: x^a (1-x)^b / (a B(a, b)) times its continued
    fraction (Abramowitz & Stegun 1964, 26.5.8), which converges fast for x < (a + 1) / (a + b + 2); beyond it by
    I_x(a, b) = 1 - I_{1-x}(b, a)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(1 - x, b, a)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / a * _continued_fraction(x, a, b)


def _continued_fraction(x: float, a: float, b: float) -> float:
    """1 / (1 + d1 / (1 + d2 / (1 + ...))) by Lentz's method."""
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 500):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
