"""Euler-ancestral as rectified-flow code has it (ComfyUI, diffusers' LTXEulerAncestralRFScheduler).

With t = rho / (1 + rho), which is sigma on rectified flow: Euler to t_down = t' (1 + (t'/t - 1) eta), then fresh noise
back up to t'. As a member of the first-order family

    c = sqrt(1 - (rho_down / rho')^2),    rho_down = t_down / (1 - t_down)

It is not ancestral sampling: with eta = 1 it injects less noise (c = 0.88 against 0.94 for a step from lam = -0.7 to
0.4), so it does not follow the reverse SDE, and its last visible noise is smoother. `euler-ancestral` is the other one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .first_order import FirstOrder
from .sampler import Leg
from .schedule import Level


@dataclass(frozen=True)
class FlowAncestralSampler(FirstOrder):
    """eta: 0 is Euler. noise: scales the fresh noise (s_noise); 1 keeps the level right."""

    eta: float = 1.0
    noise: float = 1.0

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def fresh_share(self, level: Level, goal: Level) -> float:
        now, then = flow_time(level), flow_time(goal)
        down = max(0.0, then * (1 + (then / now - 1) * self.eta))
        return math.sqrt(max(0.0, 1 - (down / (1 - down) / goal.rho) ** 2)) if self.eta else 0.0

    def _leg(self, level: Level, goal: Level) -> Leg:
        leg = super()._leg(level, goal)
        denoised, predicted, fresh = leg.weights
        return replace(leg, weights=(denoised, predicted, fresh * self.noise))


def flow_time(level: Level) -> float:
    """t = rho / (1 + rho): sigma of the same noise level on rectified flow, 1 at pure noise and 0 at clean data."""
    return level.sigma / (level.alpha + level.sigma)
