"""Trajectory consistency distillation's sampler: Zheng et al. 2024, arXiv 2402.19159 ("strategic stochastic sampling").

From the level at t to the one at t': a deterministic step down to s = (1 - gamma) t', then noise of the forward process
from s up to t'. As a member of the first-order family, sqrt(1 - c^2) = rho_s / rho'. For students distilled for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..errors import UsageError
from .first_order import FirstOrder
from .sampler import Leg, Levels
from .schedule import DiscreteVP, Level, NoiseSchedule


@dataclass(frozen=True)
class TCDSampler(FirstOrder):
    """gamma: the part of the way to clean data, in time, that is gone down too far and noised back up; 0 is DDIM, 1
    nearly the consistency multistep. diffusers calls it eta. On a table of betas s is a whole number, rounded down."""

    gamma: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise UsageError(f"tcd gamma must lie between 0 and 1, not {self.gamma}")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.gamma > 0

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        legs = super().plan(levels, schedule)
        if not self.gamma:
            return legs
        if schedule is None:
            raise UsageError("tcd steps below the levels of the grid: pass the schedule to init or plan")
        return tuple(self._noised(leg, schedule) for leg in legs)

    def fresh_share(self, level: Level, goal: Level) -> float:
        return 0.0  # `plan` knows the schedule and puts the noise in

    def _noised(self, leg: Leg, schedule: NoiseSchedule) -> Leg:
        if leg.goal.sigma <= 0:
            return leg
        kept = rho_below(leg.goal, self.gamma, schedule) / leg.goal.rho
        c = math.sqrt(max(0.0, 1 - kept * kept))
        return replace(leg, weights=(leg.goal.alpha, leg.goal.sigma * kept, leg.goal.sigma * c), fresh=c > 0)


def rho_below(goal: Level, gamma: float, schedule: NoiseSchedule) -> float:
    """rho at the time (1 - gamma) t of the level `goal` at t, at most that of `goal`."""
    time = (1 - gamma) * float(schedule.t_of_rho(goal.rho))
    if isinstance(schedule, DiscreteVP):
        time = math.floor(time + 1e-6)  # a whole time, found by inverting, may come out a little low
    return min(float(schedule.rho(time)), goal.rho)
