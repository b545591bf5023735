"""DDIM: Song et al. 2020, arXiv 2010.02502, eq. 12 and 16."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .first_order import FirstOrder, decay
from .schedule import Level


@dataclass(frozen=True)
class DDIMSampler(FirstOrder):
    """eta: 0 is deterministic, 1 is DDPM's ancestral sampling (variance "fixed_small")."""

    eta: float = 0.0

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def fresh_share(self, level: Level, goal: Level) -> float:
        return min(1.0, self.eta * math.sqrt(1 - decay(level, goal) ** 2))
