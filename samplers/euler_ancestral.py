"""Euler with ancestral noise, in the variance-exploding form of k-diffusion's `sample_euler_ancestral`.

    rho_up = min(rho', eta sqrt(rho'^2 (rho^2 - rho'^2) / rho^2)),    c = rho_up / rho'

With eta = 1 it is DDIM with eta = 1 and the reverse SDE to first order. The form that some rectified-flow code calls
Euler-ancestral injects less noise and is another method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .first_order import FirstOrder, decay
from .schedule import Level


@dataclass(frozen=True)
class EulerAncestralSampler(FirstOrder):
    """eta: 0 is Euler, 1 is full ancestral noise."""

    eta: float = 1.0

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def fresh_share(self, level: Level, goal: Level) -> float:
        return min(1.0, self.eta * math.sqrt(1 - decay(level, goal) ** 2))
