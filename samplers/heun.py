"""Heun's second-order method on d(x/alpha)/d rho = noise (Karras et al. 2022, arXiv 2206.00364, Algorithms 1 and 2).

Two evaluations a step: Euler to the goal, then the trapezoid of both slopes. A step that ends at clean data is an Euler
step. One that starts at pure noise, where rho is infinite, takes the trapezoid of the other form of the same ODE,
d(x/sigma)/d(alpha/sigma) = denoised, which is finite there.

Churn (Algorithm 2): a step from rho starts at rho_h = (1 + g) rho instead, where x is lifted by noise that is
S_noise sqrt(rho_h^2 - rho^2) in units of data, and where the network's time is that of rho_h. g = min(S_churn / N,
sqrt(2) - 1) for S_min <= rho <= S_max, else 0; N is the number of steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from .first_order import first_order_step
from .prediction import Prediction
from .sampler import Leg, Levels, Sampler, State, finish
from .schedule import Level, NoiseSchedule


class Trapezoid(NamedTuple):
    """x' = keep x + half (slope + slope'), with slope the `denoised` of a prediction, or its `noise`."""

    slope: str
    keep: float
    half: float


class HeunSteps(Sampler):
    """What makes a step of `heun_leg`."""

    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2

    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        goal, second = state.goal, state.leg.weights
        if state.stage == 0:
            x = first_order_step(prediction, goal.alpha, goal.sigma)
            if second is None:
                return finish(state, x)
            return replace(state, x=x, stage=1, start=state.x, history=(getattr(prediction, second.slope),))
        slopes = state.history[0] + getattr(prediction, second.slope)
        assert state.start is not None
        return finish(state, torch.add(state.start * second.keep, slopes, alpha=second.half))


@dataclass(frozen=True)
class HeunSampler(HeunSteps):
    """churn, low, high, noise: S_churn, S_min, S_max and S_noise of the source; churn = 0 is deterministic, noise a
    little above 1 makes up for networks that remove too much. The first step is not churned, since x is at the grid's
    first level already: start from a larger level instead."""

    churn: float = 0.0
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0

    def __post_init__(self) -> None:
        if self.churn < 0:
            raise UsageError(f"heun churn must be at least 0, not {self.churn}")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.churn > 0

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        grow = 1 + min(self.churn / (len(levels) - 1), math.sqrt(2) - 1)
        starts = (levels[0], *(self._churned(level, grow, schedule) for level in levels[1:-1]))
        return tuple(heun_leg(start, goal, self.noise) for start, goal in zip(starts, levels[1:]))

    def _churned(self, level: Level, grow: float, schedule: NoiseSchedule | None) -> Level:
        if grow == 1 or not self.low <= level.rho <= self.high:
            return level
        if schedule is None:
            raise UsageError("churn starts steps between the levels of the grid: pass the schedule to init or plan")
        return schedule.level_of_rho(level.rho * grow)


def heun_leg(level: Level, goal: Level, lift: float = 1.0) -> Leg:
    """One step; lift: scale of the noise that brings x to `level`, where it lies above the end of the step before."""
    second = trapezoid(level, goal)
    return Leg((level, goal) if second else (level,), goal, second, lift=lift)


def trapezoid(level: Level, goal: Level) -> Trapezoid | None:
    if goal.sigma <= 0:
        return None
    if level.alpha <= 0:
        return Trapezoid("denoised", goal.sigma / level.sigma, goal.alpha / 2)
    return Trapezoid("noise", goal.alpha / level.alpha, goal.alpha * (goal.rho - level.rho) / 2)
