"""DDIM inversion: the slope at the end of a step for the one at its start (Song et al. 2020, arXiv 2010.02502)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from ..denoiser import Denoiser
from ..sampler import Leg, Levels
from ..schedule import NoiseSchedule
from .ddim_step import Affine, ddim_step
from .reversible import Carried, ReversibleStep, legs_of, started
from .slope import slope_at


@dataclass(frozen=True)
class Naive(ReversibleStep):
    """x = (x' - d slope(x', t)) / c of the step x' = c x + d slope(x, t), with t the noisier time. One call a step.

    The round trip is off by the order of a step's length, 7 % of the latents on the embedded model in 25 steps. Under
    CFG++ this is its own inversion (Chung et al. 2024, arXiv 2406.08070): x_0 = (x' - sigma' eps_n) / alpha',
    x = alpha x_0 + sigma eps_w.
    """

    exact: ClassVar[bool] = False

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        return legs_of(levels, [ddim_step(level, goal) for level, goal in pairwise(levels)])

    def begin(self, x: Tensor, levels: Levels, schedule: NoiseSchedule | None = None) -> Carried:
        return started(x, 1, self.plan(levels, schedule))

    def step(self, denoiser: Denoiser, state: Carried, i: int, condition: Any = None) -> Carried:
        (x,) = state.tensors
        ddim: Affine = state.legs[i].weights
        return state.now(ddim.forth(x, slope_at(denoiser, x, state.legs, i, ddim.slope, condition)))

    def back(self, denoiser: Denoiser, state: Carried, i: int, condition: Any = None) -> Carried:
        (after,) = state.tensors
        ddim: Affine = state.legs[i].weights
        return state.now(ddim.back(after, slope_at(denoiser, after, state.legs, i, ddim.slope, condition)))

    def end(self, state: Carried) -> Tensor:
        return state.tensors[0]
