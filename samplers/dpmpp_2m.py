"""DPM-Solver++(2M) and its stochastic form: Lu et al. 2022, arXiv 2211.01095, Algorithm 2 and Appendix F.

With h = lam' - lam, H = (1 + eta) h, r = (lam - lam_before) / h and fresh noise xi, the midpoint rule

    x' = (sigma'/sigma) e^{-eta h} x - alpha' expm1(-H) (D + (D - D_before) / (2 r)) + sigma' sqrt(1 - e^{-2 eta h}) xi

The first step, one that follows pure noise (lam = -inf), and the last one to sigma' = 0 are of first order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .prediction import Prediction, affine
from .sampler import Leg, Levels, Sampler, State, finish
from .schedule import Level, NoiseSchedule


@dataclass(frozen=True)
class SDEDPMPP2MSampler(Sampler):
    """eta: 0 is DPM++ 2M (the ODE), 1 the reverse SDE."""

    eta: float = 1.0
    order: ClassVar[int] = 2

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        before = (None, *levels)
        return tuple(self._leg(*three) for three in zip(before, levels, levels[1:], strict=False))

    def _leg(self, before: Level | None, level: Level, goal: Level) -> Leg:
        weights = self._coefficients(before, level, goal)
        return Leg((level,), goal, weights, fresh=weights[-1] > 0)

    def _coefficients(self, before: Level | None, level: Level, goal: Level) -> tuple[float, float, float, float]:
        """Weights of x, D0, D_before and the fresh noise."""
        h = goal.lam - level.lam  # infinite from pure noise and to clean data; every exponential below is then finite
        gain = -goal.alpha * math.expm1(-(1 + self.eta) * h)
        fresh = goal.sigma * math.sqrt(-math.expm1(-2 * self.eta * h)) if self.eta else 0.0
        keep = goal.sigma / level.sigma * (math.exp(-self.eta * h) if self.eta else 1.0)
        if before is None or before.alpha <= 0 or math.isinf(h):
            return keep, gain, 0.0, fresh
        half = gain * h / (2 * (level.lam - before.lam))
        return keep, gain + half, -half, fresh

    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        keep, gain, past, fresh = state.leg.weights
        now = prediction.denoised
        x = affine(keep, state.x, gain, now)
        if past:
            x = torch.add(x, state.history[0], alpha=past)
        if fresh:
            assert noise is not None, "a stochastic step needs noise"
            x = torch.add(x, noise, alpha=fresh)
        return finish(state, x, now)


@dataclass(frozen=True)
class DPMPP2MSampler(SDEDPMPP2MSampler):
    """The deterministic member."""

    eta: float = 0.0
