"""DDPM's ancestral sampling: Ho et al. 2020, arXiv 2006.11239, eq. 6 and 7, on any list of levels.

    x' = alpha' denoised + sigma' (sigma'/sigma) (alpha/alpha') noise + s xi,    s^2 = one of

    small  sigma'^2 (1 - (rho'/rho)^2)            the variance of the posterior q(x' | x, x_0): DDIM with eta = 1
    large  sigma^2 - (alpha/alpha')^2 sigma'^2    the variance of the forward step: beta on VP, sigma^2 - sigma'^2 on VE

The small one is right for data that are one point, the large one for data N(0, I); with many steps they agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..errors import UsageError
from .first_order import FirstOrder, decay
from .sampler import Leg
from .schedule import Level


@dataclass(frozen=True)
class DDPMSampler(FirstOrder):
    """variance: "small" or "large" (diffusers' fixed_small and fixed_large). The step to clean data takes no noise."""

    variance: str = "small"
    stochastic = True

    def __post_init__(self) -> None:
        if self.variance not in ("small", "large"):
            raise UsageError(f'ddpm variance is "small" or "large", not {self.variance!r}')

    def fresh_share(self, level: Level, goal: Level) -> float:
        return math.sqrt(1 - decay(level, goal) ** 2)

    def _leg(self, level: Level, goal: Level) -> Leg:
        leg = super()._leg(level, goal)
        if self.variance == "small" or not leg.fresh:
            return leg
        return replace(leg, weights=(*leg.weights[:2], forward_deviation(level, goal)))


def forward_deviation(level: Level, goal: Level) -> float:
    """Standard deviation of the noise that the forward process adds from `goal` to `level`."""
    return math.sqrt(level.sigma**2 - (level.alpha / goal.alpha * goal.sigma) ** 2)
