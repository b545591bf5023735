"""The data form of the probability-flow ODE, solved exactly but for the path of `denoised` along a step:

    x' = (sigma'/sigma) x + alpha' INT_lam^lam' e^{-(lam' - l)} denoised(l) dl

With `denoised` a polynomial in the share s of the step, sum_k d_k s^k / k!, the integral is sum_k M_k d_k, where

    M_k(h) = INT_0^h e^{-(h - l)} (l/h)^k / k! dl,    M_0 = 1 - e^{-h},   M_k = 1/k! - M_{k-1} / h

Every DPM-Solver++, UniPC and exponential Runge-Kutta step is a choice of the points where `denoised` is known, and of
the moments that its weights reproduce.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .prediction import affine
from .sampler import between
from .schedule import Level, NoiseSchedule


def moments(h: float, count: int) -> list[float]:
    """M_0 .. M_{count - 1} for a step of length h in lam, in (0, inf).

    h = inf, a step from pure noise, is taken in gamma = alpha / sigma instead, d(x/sigma)/d gamma = denoised, where
    M_k = 1 / (k + 1)!. (A step to clean data has the same M_0.)
    """
    if math.isinf(h):
        return [1 / math.factorial(k + 1) for k in range(count)]
    if h < 1:  # the recursion cancels: h sum_j (-h)^j / (j + k + 1)!
        return [h * sum((-h) ** j / math.factorial(j + k + 1) for j in range(20)) for k in range(count)]
    found = [-math.expm1(-h)]
    for k in range(1, count):
        found.append(1 / math.factorial(k) - found[-1] / h)
    return found


def matched(shares: Sequence[float], wanted: Sequence[float]) -> tuple[float, ...]:
    """Weights w with sum_j w_j shares_j^k / k! = wanted_k: for `denoised` known at these shares of the step.

    shares: different numbers, 0 where the step starts and 1 where it ends. wanted: as many moments.
    """
    rows = [np.asarray(shares, dtype=np.float64) ** k / math.factorial(k) for k in range(len(shares))]
    return tuple(np.linalg.solve(np.stack(rows), np.asarray(wanted, dtype=np.float64)).tolist())


def stage_level(level: Level, goal: Level, share: float, schedule: NoiseSchedule | None) -> Level:
    """The level at `share` of the way to `goal`: in lam, and from pure noise in gamma = alpha / sigma."""
    if level.alpha > 0:
        return between(level, goal, share, schedule)
    there = Level(level.time, share * goal.alpha, goal.sigma)  # its gamma is right; the schedule gives its time
    return between(there, goal, 0.0, schedule)


def combined(keep: float, x: Tensor, weights: Sequence[float], evaluations: Sequence[Tensor]) -> Tensor:
    """keep x + sum_j weights_j evaluations_j; zero weights cost nothing, the first one must not be zero."""
    x = affine(keep, x, weights[0], evaluations[0])
    for weight, evaluation in zip(weights[1:], evaluations[1:]):
        if weight:
            x = torch.add(x, evaluation, alpha=weight)
    return x
