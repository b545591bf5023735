"""Extended reverse-time SDE solvers: Cui et al. 2023, arXiv 2309.06169 (ER-SDE-Solver-1, -2 and -3).

A function phi(rho) says how much noise is exchanged: rho is the ODE, rho^2 the reverse SDE. With r = phi(rho')/phi(rho)

    x'/alpha' = r x/alpha + (1 - r) D + sqrt(rho'^2 - rho^2 r^2) xi + INT_rho'^rho (phi(rho')/phi(z) - 1) D'(z) dz

where D'(z), the slope of `denoised` along the path, comes from divided differences of the evaluations: none (order 1),
one (order 2) or two (order 3). The integrals are by Gauss-Legendre in log z; the source sums 100 rectangles.

The step after pure noise (rho infinite) has no difference to look back at; the step to clean data is of first order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from .prediction import Prediction, affine
from .sampler import Leg, Levels, Sampler, State, finish
from .schedule import NoiseSchedule

NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(32)
NOISE_FUNCTIONS = ("ode", "sde", "default")


class ERWeights(NamedTuple):
    """x' = keep x + sum_j past_j D_j + fresh xi, newest D first."""

    keep: float
    past: tuple[float, ...]
    fresh: float


@dataclass(frozen=True)
class ERSDESampler(Sampler):
    """order: 1, 2 or 3. phi: "ode" (rho), "sde" (rho^2) or "default", the source's rho (exp(rho^0.3) + 10), which is
    close to the ODE at low noise and takes more than the SDE's noise at high.

    third: "exact" takes D' at rho from both differences; "reference" is the source, which takes the newest difference
    for it, and is therefore of second order only.
    """

    order: int = 3  # type: ignore[misc]
    phi: str = "default"
    third: str = "exact"

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise UsageError(f"er-sde order is 1, 2 or 3, not {self.order}")
        if self.phi not in NOISE_FUNCTIONS:
            raise UsageError(f"er-sde phi {self.phi!r} is unknown; known: {', '.join(NOISE_FUNCTIONS)}")
        if self.third not in ("exact", "reference"):
            raise UsageError(f'er-sde third is "exact" or "reference", not {self.third!r}')

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.phi != "ode"

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        return tuple(self._leg(levels, step) for step in range(len(levels) - 1))

    def _leg(self, levels: Levels, step: int) -> Leg:
        level, goal = levels[step], levels[step + 1]
        if goal.sigma <= 0:
            return Leg((level,), goal, ERWeights(0.0, (goal.alpha,), 0.0))
        q = self._growth(goal.rho) / self._growth(level.rho)  # r rho / rho', finite from pure noise on
        past = [goal.alpha * (1 - q * goal.rho / level.rho)]
        rhos = [l.rho for l in levels[max(0, step + 1 - self.order) : step + 1] if l.alpha > 0][::-1]
        for j, weight in enumerate(self._past(rhos, goal.rho)):
            past[j : j + 1] = [(past[j] if j < len(past) else 0.0) + goal.alpha * weight]
        fresh = goal.sigma * math.sqrt(max(0.0, 1 - q * q))
        return Leg((level,), goal, ERWeights(q * goal.sigma / level.sigma, tuple(past), fresh), fresh=fresh > 0)

    def _past(self, rhos: list[float], goal: float) -> list[float]:
        """Weights of D_0, D_-1 .. in the integral of D'. rhos: of these evaluations, newest first."""
        if len(rhos) < 2:
            return []
        first, second = self._integrals(rhos[0], goal)
        a = rhos[0] - rhos[1]
        if len(rhos) == 2:
            return [first / a, -first / a]
        if self.third == "exact":
            second += first * a / 2
        b, bend = rhos[1] - rhos[2], 2 * second / (rhos[0] - rhos[2])  # bend multiplies the difference of slopes
        return [(first + bend) / a, -(first + bend) / a - bend / b, bend / b]

    def _integrals(self, rho: float, goal: float) -> tuple[float, float]:
        """INT_goal^rho (phi(goal)/phi(z) - 1) (z - rho)^k dz for k = 0, 1."""
        half, middle = math.log(rho / goal) / 2, math.log(rho * goal) / 2
        first = second = 0.0
        for node, weight in zip(NODES.tolist(), NODE_WEIGHTS.tolist()):
            z = math.exp(middle + half * node)
            share = goal * self._growth(goal) / (z * self._growth(z)) - 1
            first += half * weight * z * share
            second += half * weight * z * share * (z - rho)
        return first, second

    def _growth(self, rho: float) -> float:
        """phi(rho) / rho."""
        if self.phi == "ode":
            return 1.0
        return rho if self.phi == "sde" else math.exp(min(rho**0.3, 700.0)) + 10

    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        keep, past, fresh = state.leg.weights
        seen = (prediction.denoised, *state.history)
        x = affine(keep, state.x, past[0], seen[0])
        for weight, evaluation in zip(past[1:], seen[1:]):
            x = torch.add(x, evaluation, alpha=weight)
        if fresh:
            assert noise is not None, "a stochastic step needs noise"
            x = torch.add(x, noise, alpha=fresh)
        return finish(state, x, *seen[: self.order - 1])
