"""Reversible Heun: Kidger et al. 2021, arXiv 2105.13493, without its noise."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..sampler import Leg, Levels
from ..schedule import Level, NoiseSchedule
from .reversible import Carried, ReversibleStep, checked, legs_of, started
from .scaled import Scaled, scaled_step
from .slope import slope_at


@dataclass(frozen=True)
class ReversibleHeun(ReversibleStep):
    """v' = 2 u - v + f(v) h, u' = u + (f(v) + f(v')) h / 2. One call a step, for f(v) is carried.

    Nothing damps the difference of the copies, so the region of stability is small: many small steps, mild guidance. A
    grid that ends at clean data asks the network about sigma = 0.
    """

    order: ClassVar[int] = 2

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        return legs_of(levels, [scaled_step(*pair) for pair in pairwise(checked(levels))])

    def begin(self, x: Tensor, levels: Levels, schedule: NoiseSchedule | None = None) -> Carried:
        return started(x, 2, self.plan(levels, schedule))

    def step(self, denoiser: Denoiser, state: Carried, i: int, condition: Any = None) -> Carried:
        s: Scaled = state.legs[i].weights
        u, v = state.tensors[:2]
        slope = self._slope(denoiser, state, i, condition)
        u, v = u / s.start, torch.add((2 * u - v) / s.start, slope, alpha=s.h)
        noise = slope_at(denoiser, v * s.goal, state.legs, i + 1, "noise", condition)
        ahead = in_terms_of(s.slope, v * s.goal, noise, state.legs[i].goal)
        u = torch.add(u, slope + ahead, alpha=s.h / 2)
        return state.now(u * s.goal, v * s.goal, noise)

    def back(self, denoiser: Denoiser, state: Carried, i: int, condition: Any = None) -> Carried:
        s: Scaled = state.legs[i].weights
        u, v = state.tensors[:2]
        ahead = in_terms_of(s.slope, v, self._noise(denoiser, state, i + 1, condition), state.legs[i].goal)
        u, v = u / s.goal, torch.sub((2 * u - v) / s.goal, ahead, alpha=s.h)
        before = state.now(u, v * s.start)
        if i > 0:  # the state before step 0 is the one of `begin`, without a slope
            before = state.now(u, v * s.start, self._noise(denoiser, before, i, condition))
        slope = self._slope(denoiser, before, i, condition)
        u = torch.sub(u, slope + ahead, alpha=s.h / 2)
        return state.now(u * s.start, *before.tensors[1:])

    def _noise(self, denoiser: Denoiser, state: Carried, node: int, condition: Any) -> Tensor:
        """The noise predicted for v: carried, or asked for where a run begins."""
        if len(state.tensors) == 3:
            return state.tensors[2]
        return slope_at(denoiser, state.tensors[1], state.legs, node, "noise", condition)

    def _slope(self, denoiser: Denoiser, state: Carried, i: int, condition: Any) -> Tensor:
        """f(v) where step i starts. At pure noise the clean estimate does not follow from the noise."""
        which, v = state.legs[i].weights.slope, state.tensors[1]
        if i == 0:
            return slope_at(denoiser, v, state.legs, 0, which, condition)
        return in_terms_of(which, v, self._noise(denoiser, state, i, condition), state.legs[i].level)

    def end(self, state: Carried) -> Tensor:
        return state.tensors[0]


def in_terms_of(slope: str, x: Tensor, noise: Tensor, level: Level) -> Tensor:
    """The same prediction for x as `noise` or as `denoised`."""
    if slope == "noise":
        return noise
    return torch.sub(x, noise, alpha=level.sigma) / level.alpha
