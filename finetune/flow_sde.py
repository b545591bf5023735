"""Stochastic differential equations with the marginals of a flow's ODE, one Euler-Maruyama step at a time.

With t = sigma / (alpha + sigma), which is sigma on rectified flow, t' = t - h the time of the goal, and s(t) the
diffusion, the step of dx = (u + s^2 (x + (1 - t) u) / (2 t)) dt + s dw is

    x' = (1 - t') denoised + (t' - s^2 h / (2 t)) noise + s sqrt(h) xi

so it is a first-order step whose share of fresh noise is c = s sqrt(h) / t', and which keeps 1 - c^2 t' / (2 t) of the
predicted noise where the exact share would be sqrt(1 - c^2). Written so it serves any schedule: x is x_flow times
alpha + sigma. The step to clean data takes no noise.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

from ..errors import UsageError
from ..samplers.first_order import FirstOrder
from ..samplers.flow_ancestral import flow_time
from ..samplers.sampler import Leg
from ..samplers.schedule import Level


@dataclass(frozen=True)
class FlowSDE(FirstOrder):
    """scale: of the diffusion, above 0."""

    scale: float
    stochastic = True

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise UsageError(f"the noise of a stochastic flow must be above 0, not {self.scale}; 0.7 is Flow-GRPO's")

    @abstractmethod
    def diffusion(self, t: float, then: float) -> float:
        """s(t) of a step from flow time t to `then`."""

    def fresh_share(self, level: Level, goal: Level) -> float:
        t, then = flow_time(level), flow_time(goal)
        return self.diffusion(t, then) * math.sqrt(t - then) / then

    def _leg(self, level: Level, goal: Level) -> Leg:
        if goal.sigma <= 0:
            return super()._leg(level, goal)
        c = self.fresh_share(level, goal)
        kept = 1 - c * c * flow_time(goal) / (2 * flow_time(level))
        return Leg((level,), goal, (goal.alpha, goal.sigma * kept, goal.sigma * c), fresh=True)


@dataclass(frozen=True)
class FlowGRPOSampler(FlowSDE):
    """s = scale sqrt(t / (1 - t)); from pure noise, t = 1, the next time stands in 1 - t (Liu et al. 2025, arXiv
    2505.05470). So it does, here, from anywhere within half a step of pure noise: models of other schedules than flow
    begin there, and s would be far too large for the step."""

    scale: float = 0.7

    def diffusion(self, t: float, then: float) -> float:
        far = 1 - t >= (t - then) / 2
        return self.scale * math.sqrt(t / (1 - (t if far else then)))


@dataclass(frozen=True)
class DanceGRPOSampler(FlowSDE):
    """s = scale, the same at all times (Xue et al. 2025, arXiv 2505.07818)."""

    scale: float = 0.3

    def diffusion(self, t: float, then: float) -> float:
        return self.scale
