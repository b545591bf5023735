"""Annealed Langevin dynamics: Song & Ermon 2019, arXiv 1907.05600, Algorithm 1 (NCSN).

At each level T steps on u = x / alpha, with the score -noise / rho and a = epsilon (rho / rho_L)^2, rho_L of the last:

    paper  u <- u - (a / 2) noise / rho + sqrt(a) xi
    code   u <- u - a noise / rho + sqrt(2 a) xi          what the authors' program does: twice the paper's step

then on to the next level with the same u; no step follows a trajectory, so levels must be close. At the end one clean
estimate, x = denoised, which the paper has not; later work found that it matters. Every step is one evaluation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from .prediction import Prediction
from .sampler import Leg, Levels, Sampler, State, finish
from .schedule import Level, NoiseSchedule


class LangevinWeights(NamedTuple):
    """x' = keep x + drift noise + fresh xi."""

    keep: float
    drift: float
    fresh: float


@dataclass(frozen=True)
class AnnealedLangevinSampler(Sampler):
    """repeats: T, steps at each level. step_size: epsilon, in units of rho squared, for rho_L; the source has 2e-5 for
    rho_L = 0.01. step_convention: "code" or "paper", see above. denoise: whether to end with the clean estimate;
    without it the run ends at the last level above clean data.

    The source's grid is 10 levels from rho = 1 to 0.01, geometric, from a start that is uniform in [0, 1]. Raises
    UsageError for a grid that begins at pure noise, and where the steps are too long to be stable.
    """

    repeats: int = 100
    step_size: float = 2e-5
    step_convention: str = "code"
    denoise: bool = True
    order: ClassVar[int] = 1
    stochastic = True

    def __post_init__(self) -> None:
        if self.step_convention not in ("code", "paper"):
            raise UsageError(f'langevin step_convention is "code" or "paper", not {self.step_convention!r}')
        if self.repeats < 1 or self.step_size <= 0:
            raise UsageError("langevin needs repeats of at least 1 and a step_size above 0")

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        noisy = [level for level in levels if level.sigma > 0]
        if noisy[0].alpha <= 0:
            raise UsageError("Langevin steps need a finite rho: begin the grid below pure noise")
        share = self.step_size / noisy[-1].rho ** 2 / (2 if self.step_convention == "paper" else 1)  # a / rho^2
        if share >= 2:
            raise UsageError(f"langevin step_size={self.step_size} is too long for rho={noisy[-1].rho:.3g}; divide it")
        legs = [leg for level, goal in pairwise(noisy) for leg in self._at(level, goal, share)]
        if len(noisy) < len(levels):  # ends at clean data
            legs += self._at(noisy[-1], noisy[-1], share)
            legs += [denoising(noisy[-1], levels[-1])] if self.denoise else []
        return tuple(legs)

    def _at(self, level: Level, goal: Level, share: float) -> list[Leg]:
        """The steps at one level; the last one goes on to `goal`."""
        goals = [level] * (self.repeats - 1) + [goal]
        return [Leg((level,), end, langevin_weights(level, end, share), fresh=True) for end in goals]

    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        if not state.leg.fresh:
            return finish(state, prediction.denoised)
        assert noise is not None, "a Langevin step needs noise"
        keep, drift, fresh = state.leg.weights
        x = state.x if keep == 1 else state.x * keep
        return finish(state, torch.add(torch.add(x, prediction.noise, alpha=drift), noise, alpha=fresh))


def langevin_weights(level: Level, goal: Level, share: float) -> LangevinWeights:
    """u <- u - s rho noise + sqrt(2 s) rho xi in terms of x, for u that is taken on to `goal`; s: `share`."""
    reach = goal.alpha * level.rho
    return LangevinWeights(goal.alpha / level.alpha, -share * reach, math.sqrt(2 * share) * reach)


def denoising(level: Level, clean: Level) -> Leg:
    """The step whose end is the clean estimate."""
    return Leg((level,), clean)
