"""What the single-step solvers share: several evaluations of `denoised` inside one step, nothing carried to the next.

Each evaluation is reached, as is the end of the step, by

    x_m = (sigma_m / sigma) x + alpha_m sum_j w_j D_j

over the `denoised` D_0 .. D_{m-1} seen so far; the stochastic ones (`ancestral`, `sde_dpmpp_2s`) keep less of x and add
fresh noise. A step that ends at clean data has one evaluation and returns it. A step
from pure noise, where lam is infinite, has its stages at the same shares of gamma = alpha / sigma, in which the ODE
d(x/sigma)/d gamma = denoised is finite; so this step, too, has its order and its number of evaluations.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .exponential import combined, stage_level
from .prediction import Prediction
from .sampler import Leg, Levels, Sampler, State, finish
from .schedule import Level, NoiseSchedule


class Stage(NamedTuple):
    """x_m = keep x + sum_j weights_j D_j + fresh xi."""

    keep: float
    weights: tuple[float, ...]
    fresh: float = 0.0


class SingleStep(Sampler):
    @abstractmethod
    def tableau(self, h: float) -> tuple[tuple[float, tuple[float, ...]], ...]:
        """(share of the step, weights of D_0 .. without the factor alpha_m) of each point that is reached: the inner
        stages, then the end, whose share is 1. h: length of the step in lam, infinite from pure noise."""

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        return tuple(self.leg(level, goal, schedule) for level, goal in pairwise(levels))

    def leg(self, level: Level, goal: Level, schedule: NoiseSchedule | None) -> Leg:
        if goal.sigma <= 0:
            return Leg((level,), goal, (Stage(0.0, (goal.alpha,)),))
        rows = self.tableau(goal.lam - level.lam)
        ends = (*(stage_level(level, goal, share, schedule) for share, _ in rows[:-1]), goal)
        stages = (
            Stage(end.sigma / level.sigma, tuple(end.alpha * w for w in weights))
            for end, (_, weights) in zip(ends, rows)
        )
        return Leg((level, *ends[:-1]), goal, tuple(stages))

    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        return advance_stage(state, prediction.denoised, noise)


def advance_stage(state: State, denoised: Tensor, noise: Tensor | None = None, remembered: int = 0) -> State:
    """The state after this evaluation; noise: xi, where the stage takes it. Until the step ends, the history also holds
    its D_0, D_1, ..; then D_0 and those of earlier steps, newest first, `remembered` of them in all."""
    older, own = state.history[: len(state.history) - state.stage], state.history[len(state.history) - state.stage :]
    seen = (*own, denoised)
    start = state.start if state.stage else state.x
    assert start is not None
    stage: Stage = state.leg.weights[state.stage]
    x = combined(stage.keep, start, stage.weights, seen)
    if stage.fresh:
        assert noise is not None, "a stochastic step needs noise"
        x = torch.add(x, noise, alpha=stage.fresh)
    if state.stage + 1 == len(state.leg.points):
        return finish(state, x, *(seen[0], *older)[:remembered])
    return replace(state, x=x, stage=state.stage + 1, start=start, history=(*older, *seen))
