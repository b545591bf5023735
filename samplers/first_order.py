"""One first-order step covers a whole family.

    x' = alpha' denoised + sigma' (sqrt(1 - c^2) noise + c xi),    xi ~ N(0, I)                      (U1)

c = 0 is DDIM, Euler on x/alpha and Euler on rectified flow at once; other members are choices of c. It is finite from
alpha = 0 on, and ends exactly at `denoised` when sigma' = 0.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from .prediction import Prediction
from .sampler import Leg, Levels, Sampler, State, finish
from .schedule import Level, NoiseSchedule


def decay(level: Level, goal: Level) -> float:
    """e^{-h} = rho' / rho with h = lam' - lam > 0; 0 when the step starts at pure noise or ends at clean data."""
    return goal.sigma * level.alpha / (goal.alpha * level.sigma)


class FirstOrder(Sampler):
    order: ClassVar[int] = 1

    @abstractmethod
    def fresh_share(self, level: Level, goal: Level) -> float:
        """c of (U1): the share of sigma' that is fresh noise, in [0, 1]."""

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        return tuple(self._leg(level, goal) for level, goal in pairwise(levels))

    def _leg(self, level: Level, goal: Level) -> Leg:
        c = self.fresh_share(level, goal) if goal.sigma > 0 else 0.0
        return Leg((level,), goal, (goal.alpha, goal.sigma * math.sqrt(1 - c * c), goal.sigma * c), fresh=c > 0)

    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        a, b, c = state.leg.weights
        return finish(state, first_order_step(prediction, a, b, c, noise))


def first_order_step(p: Prediction, a: float, b: float, c: float = 0.0, noise: Tensor | None = None) -> Tensor:
    """a denoised + b noise_predicted + c noise."""
    x = p.mixed(a, b)
    if c:
        assert noise is not None, "a stochastic step needs noise"
        x = torch.add(x, noise, alpha=c)
    return x
