"""DPM++ SDE of k-diffusion: two evaluations a step, both of them after fresh noise. With m at share r of the step in
lam, and rho_down and rho_up of `ancestral` between the start and m, or the start and the goal,

    x_m / alpha_m = (rho_down / rho) x / alpha + (1 - rho_down / rho) D_0 + rho_up xi_m
    x' / alpha'   = (rho_down / rho) x / alpha + (1 - rho_down / rho) ((1 - 1/(2r)) D_0 + D_m / (2r)) + rho_up xi

xi_m and xi are of one Brownian path W(rho), over [rho_m, rho] and [rho', rho], so that their correlation is
k = sqrt((rho - rho_m) / (rho - rho')), and xi = k xi_m + sqrt(1 - k^2) xi_2 with xi_2 fresh. With any other correlation
in the limit of short steps the weak order is 1, not 2. eta = 0 is DPM++ 2S.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .ancestral import ancestral_split, check_eta
from .dpmpp_2s import DPMPP2SSampler
from .exponential import stage_level
from .first_order import decay
from .prediction import Prediction
from .sampler import Leg, State
from .schedule import Level, NoiseSchedule
from .single_step import Stage, advance_stage


@dataclass(frozen=True)
class SDEDPMPP2SSampler(DPMPP2SSampler):
    """eta: 0 is the ODE, 1 the reverse SDE. r: share of the step, in lam, at which the inner evaluation stands."""

    eta: float = 1.0
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def wants_noise(self, state: State) -> bool:
        return state.leg.fresh

    def leg(self, level: Level, goal: Level, schedule: NoiseSchedule | None) -> Leg:
        if goal.sigma <= 0 or not self.eta:
            return super().leg(level, goal, schedule)
        middle = stage_level(level, goal, self.r, schedule)
        part = 1 / (2 * self.r)
        stages = self._stage(level, middle, (1.0,)), self._stage(level, goal, (1 - part, part))
        return Leg((level, middle), goal, stages, fresh=True)

    def _stage(self, level: Level, end: Level, shares: tuple[float, ...]) -> Stage:
        kept, fresh = ancestral_split(self.eta, level, end)
        moved = end.alpha * (1 - decay(level, end) * kept)
        return Stage(end.sigma * kept / level.sigma, tuple(moved * share for share in shares), end.sigma * fresh)

    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        if not state.leg.fresh:
            return super().advance(state, prediction, noise)
        assert noise is not None, "a stochastic step needs noise"
        if state.stage == 0:
            inner = advance_stage(state, prediction.denoised, noise)
            return replace(inner, history=(*inner.history, noise))
        first, before = state.history
        shared = correlation(state.leg)
        mixed = torch.add(before * shared, noise, alpha=math.sqrt(1 - shared * shared))
        return advance_stage(replace(state, history=(first,)), prediction.denoised, mixed)


def correlation(leg: Leg) -> float:
    """Of a Brownian path's moves over [rho_m, rho] and [rho', rho]; from pure noise it is 1."""
    (start, middle), goal = (level.rho for level in leg.points), leg.goal.rho
    return math.sqrt(min(1.0, (start - middle) / (start - goal))) if math.isfinite(start) else 1.0
