"""Exact problems for samplers: the reference mixture on any path, and its probability-flow ODE solved to rounding."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from pilotage.samplers.denoiser import ExactDenoiser
from pilotage.samplers.schedule import Level, LinearVP, NoiseSchedule, RectifiedFlow, VarianceExploding
from pilotage.zoo import toy

PATHS: dict[str, NoiseSchedule] = {"vp": LinearVP(), "ve": VarianceExploding(), "flow": RectifiedFlow()}
START = {"vp": (0.7, -0.4), "ve": (8.0, -5.0), "flow": (0.7, -0.4)}  # x at lam = -2.5
FIRST, LAST = -2.5, 2.5


def level_of_lam(path: str, lam: float) -> Level:
    rho = math.exp(-lam)
    alpha = {"vp": 1 / math.hypot(1, rho), "ve": 1.0, "flow": 1 / (1 + rho)}[path]
    return Level(0.0, alpha, alpha * rho)


def smooth_grid(path: str, steps: int) -> tuple[Level, ...]:
    """A smoothly non-uniform grid in lam, which catches wrong ratios of steps."""
    s = np.arange(steps + 1) / steps
    return tuple(level_of_lam(path, lam) for lam in FIRST + (LAST - FIRST) * (s + 0.5 * s * (1 - s)))


def mixture(path: str) -> ExactDenoiser:
    return ExactDenoiser(toy.g3(), PATHS[path])


@cache
def exact_u(start: tuple[float, float], lam: float) -> Tensor:
    """x / alpha at `lam` on the trajectory through u = start at lam = FIRST: du/dlam = -rho noise = D(u) - u."""
    if lam == FIRST:
        return torch.tensor(start, dtype=torch.float64)
    world = toy.g3()

    def slope(l: float, u: np.ndarray) -> np.ndarray:
        return world.denoised(torch.from_numpy(u)[None], 1.0, math.exp(-l))[0].numpy() - u

    solved = solve_ivp(slope, (FIRST, lam), np.array(start), method="DOP853", rtol=1e-13, atol=1e-14)
    return torch.from_numpy(solved.y[:, -1])


class Line:
    """One-dimensional Gaussian data N(mean, variance), which every sampler steps affinely."""

    def __init__(self, mean: float = 0.7, variance: float = 0.3):
        self.mean, self.variance = mean, variance

    def denoised(self, x: Tensor, alpha: float, sigma: float, condition: Any = None) -> Tensor:
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)

    def spread(self, level: Level) -> float:
        """Variance of x at a level."""
        return level.alpha**2 * self.variance + level.sigma**2
