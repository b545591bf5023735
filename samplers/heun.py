"""Heun's second-order method on d(x/alpha)/d rho = noise (Karras et al. 2022, arXiv 2206.00364, Algorithm 1).

Two evaluations a step: Euler to the goal, then the trapezoid of both slopes. A step that ends at clean data is an Euler
step. One that starts at pure noise, where rho is infinite, takes the trapezoid of the other form of the same ODE,
d(x/sigma)/d(alpha/sigma) = denoised, which is finite there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .first_order import first_order_step
from .prediction import Prediction
from .sampler import Sampler, State, finish
from .schedule import Level


class Trapezoid(NamedTuple):
    """x' = keep x + half (slope + slope'), with slope the `denoised` of a prediction, or its `noise`."""

    slope: str
    keep: float
    half: float


@dataclass(frozen=True)
class HeunSampler(Sampler):
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2

    def plan(self, levels: tuple[Level, ...]) -> tuple[tuple[float, float, Trapezoid | None], ...]:
        steps = zip(levels, levels[1:], strict=False)
        return tuple((goal.alpha, goal.sigma, trapezoid(level, goal)) for level, goal in steps)

    def stages_of(self, coefficients: tuple[float, float, Trapezoid | None]) -> int:
        return 2 if coefficients[2] else 1

    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        a, b, second = state.plan[state.step]
        if state.stage == 0:
            x = first_order_step(prediction, a, b)
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
