"""Heun's second-order method on d(x/alpha)/d rho = noise (Karras et al. 2022, arXiv 2206.00364, Algorithm 1).

Two evaluations a step: Euler to the goal, then the trapezoid of both slopes. A step that ends at clean data is an Euler
step. One that starts at pure noise, where rho is infinite, takes the trapezoid of the other form of the same ODE,
d(x/sigma)/d(alpha/sigma) = denoised, which is finite there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .first_order import first_order_step
from .prediction import Prediction
from .sampler import Leg, Levels, Sampler, State, finish
from .schedule import Level, NoiseSchedule


class Trapezoid(NamedTuple):
    """x' = keep x + half (slope + slope'), with slope the `denoised` of a prediction, or its `noise`."""

    slope: str
    keep: float
    half: float


@dataclass(frozen=True)
class HeunSampler(Sampler):
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        return tuple(self._leg(level, goal) for level, goal in pairwise(levels))

    def _leg(self, level: Level, goal: Level) -> Leg:
        second = trapezoid(level, goal)
        return Leg((level, goal) if second else (level,), goal, second)

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


def trapezoid(level: Level, goal: Level) -> Trapezoid | None:
    if goal.sigma <= 0:
        return None
    if level.alpha <= 0:
        return Trapezoid("denoised", goal.sigma / level.sigma, goal.alpha / 2)
    return Trapezoid("noise", goal.alpha / level.alpha, goal.alpha * (goal.rho - level.rho) / 2)
