"""Steps from two levels to the next: a three-term recurrence can be read in both directions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..sampler import Leg, Levels
from ..schedule import Level, NoiseSchedule
from .ddim_step import Affine, ddim_step
from .reversible import Carried, ReversibleStep, checked, legs_of, started
from .slope import slope_at


class ThreeTerm(NamedTuple):
    """x_{i+1} = before x_{i-1} + here x_i + gain noise(x_i)."""

    before: float
    here: float
    gain: float


class TwoLevel(ReversibleStep):
    """Carries (x_i, x_{i+1}) after step i; step 0 is DDIM's. Of a picture x_N alone is known, and one step of naive
    DDIM inversion supplies x_{N-1}; what it is off by stays in the pair, so the pair still ends at the picture."""

    first: ClassVar[int] = 1

    @abstractmethod
    def three_term(self, before: Level, here: Level, after: Level) -> ThreeTerm:
        """The recurrence over these three levels."""

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        triples = zip(checked(levels), levels[1:], levels[2:], strict=False)
        weights: Sequence[Any] = [ddim_step(*levels[:2]), *(self.three_term(*triple) for triple in triples)]
        return legs_of(levels, weights)

    def begin(self, x: Tensor, levels: Levels, schedule: NoiseSchedule | None = None) -> Carried:
        return started(x, 1, self.plan(levels, schedule))

    def step(self, denoiser: Denoiser, state: Carried, i: int, condition: Any = None) -> Carried:
        if i == 0:
            (x,) = state.tensors
            ddim: Affine = state.legs[0].weights
            return state.now(x, ddim.forth(x, slope_at(denoiser, x, state.legs, 0, ddim.slope, condition)))
        before, x = state.tensors
        w: ThreeTerm = state.legs[i].weights
        return state.now(x, torch.add(before * w.before, self._driven(denoiser, x, state, i, condition)))

    def back(self, denoiser: Denoiser, state: Carried, i: int, condition: Any = None) -> Carried:
        x, after = state.tensors
        if i == 0:
            return state.now(x)
        w: ThreeTerm = state.legs[i].weights
        return state.now(torch.sub(after, self._driven(denoiser, x, state, i, condition)) / w.before, x)

    def _driven(self, denoiser: Denoiser, x: Tensor, state: Carried, i: int, condition: Any) -> Tensor:
        """What x_i contributes: here x_i + gain noise(x_i)."""
        w: ThreeTerm = state.legs[i].weights
        return torch.add(x * w.here, slope_at(denoiser, x, state.legs, i, "noise", condition), alpha=w.gain)

    def end(self, state: Carried) -> Tensor:
        return state.tensors[-1]

    def begin_at_data(
        self,
        denoiser: Denoiser,
        x: Tensor,
        levels: Levels,
        schedule: NoiseSchedule | None = None,
        condition: Any = None,
    ) -> Carried:
        state = self.begin(x, levels, schedule)
        (x,), last = state.tensors, state.steps - 1
        ddim = ddim_step(state.legs[last].level, state.legs[last].goal)
        return state.now(ddim.back(x, slope_at(denoiser, x, state.legs, last, ddim.slope, condition)), x)
