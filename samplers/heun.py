"""Heun's second-order method on d(x/alpha)/d rho = noise (Karras et al. 2022, arXiv 2206.00364, Algorithm 1).

Two evaluations a step; a step that starts at pure noise (rho infinite) or ends at clean data is an Euler step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .first_order import first_order_step
from .prediction import Prediction
from .sampler import Sampler, State, finish
from .schedule import Level


@dataclass(frozen=True)
class HeunSampler(Sampler):
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2

    def plan(self, levels: tuple[Level, ...]) -> tuple[tuple[float, ...], ...]:
        return tuple(self._coefficients(a, b) for a, b in zip(levels, levels[1:], strict=False))

    def _coefficients(self, level: Level, goal: Level) -> tuple[float, ...]:
        if level.alpha <= 0 or goal.sigma <= 0:
            return goal.alpha, goal.sigma  # Euler, one stage
        return goal.alpha, goal.sigma, goal.alpha / level.alpha, goal.alpha * (goal.rho - level.rho) / 2

    def stages_of(self, coefficients: tuple[float, ...]) -> int:
        return 2 if len(coefficients) == 4 else 1

    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        a, b, *trapezoid = state.plan[state.step]
        if state.stage == 0:
            x = first_order_step(prediction, a, b)
            if not trapezoid:
                return finish(state, x)
            return replace(state, x=x, stage=1, start=state.x, history=(prediction.noise,))
        scale, half = trapezoid
        slopes = state.history[0] + prediction.noise
        assert state.start is not None
        return finish(state, torch.add(state.start * scale, slopes, alpha=half))
