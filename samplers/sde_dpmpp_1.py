"""SDE-DPM-Solver++(1): Lu et al. 2022, arXiv 2211.01095. With h = lam' - lam, (U1) of `first_order` with

    c = sqrt(1 - e^{-2 eta h})

the exact solution, with `denoised` held over the step, of the SDE between the ODE (eta = 0) and the reverse SDE
(eta = 1). At these two it is DDIM with the same eta; between them DDIM's share is eta sqrt(1 - e^{-2h}).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .first_order import FirstOrder, decay
from .schedule import Level


@dataclass(frozen=True)
class SDEDPMPP1Sampler(FirstOrder):
    """eta: 0 is DDIM (the ODE), 1 the reverse SDE."""

    eta: float = 1.0

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def fresh_share(self, level: Level, goal: Level) -> float:
        return math.sqrt(1 - decay(level, goal) ** (2 * self.eta))
