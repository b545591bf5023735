"""Euler's method on the probability-flow ODE, d(x/alpha)/d rho = noise (Karras et al. 2022, arXiv 2206.00364, Alg. 1).

In the schedule-free variables x/alpha and rho it is the same update on VP, VE and rectified flow, and the same as DDIM
with eta = 0; the two are kept as two names because people look for both.
"""

from __future__ import annotations

from dataclasses import dataclass

from .first_order import FirstOrder
from .schedule import Level


@dataclass(frozen=True)
class EulerSampler(FirstOrder):
    def fresh_share(self, level: Level, goal: Level) -> float:
        return 0.0
