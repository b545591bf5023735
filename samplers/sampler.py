"""Ask and tell: a sampler never calls the network.

    state = sampler.init(x, levels)
    while not state.done:
        prediction = denoiser(state.x, state.level)          # the sampler asks through its state
        state = sampler.tell(state, prediction, noise)       # and is told

So one update serves our own loop (differentiable, yields every step) and a diffusers scheduler class; both are short
drivers. A run is a list of `Leg`s, one for each outer step, that `plan` makes once: all coefficients are Python floats
computed in float64, so a step is a few tensor operations and never reads from the device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import UsageError
from ..registry import check_settings
from .prediction import Prediction
from .schedule import Level, NoiseSchedule

Levels = tuple[Level, ...]


@dataclass(frozen=True)
class Leg:
    """One outer step: from `points[0]` to `goal`.

    points: where the network is wanted, one a stage; the first is where the step starts. weights: what the sampler
    computed for this step. fresh: whether the last stage takes noise. Where the next leg starts above this one's goal
    (Restart, churn), `Sampler.tell` adds the noise that lifts x there; `lift` of the leg that starts higher scales it.
    A corrector's goal is where it starts.
    """

    points: Levels
    goal: Level
    weights: Any = None
    fresh: bool = False
    lift: float = 1.0

    @property
    def level(self) -> Level:
        return self.points[0]


@dataclass(frozen=True, eq=False)
class State:
    """Where a run is. Explicit, so that checkpoints, rewinds and replays are right.

    x: where the network is wanted now. step: outer steps done. stage: 0 starts an outer step.
    start: x at the beginning of the outer step. history: what the sampler keeps of earlier evaluations.
    memory: what guidance rules keep between outer steps; it travels with the state.
    shifted: whether an inconsistent prediction has moved x in this run; correctors rest from then on.
    """

    x: Tensor
    legs: tuple[Leg, ...]
    step: int = 0
    stage: int = 0
    start: Tensor | None = None
    history: tuple[Tensor, ...] = ()
    memory: Any = None
    shifted: bool = False

    @property
    def done(self) -> bool:
        return self.step >= len(self.legs)

    @property
    def leg(self) -> Leg:
        return self.legs[self.step]

    @property
    def level(self) -> Level:
        """Level of the wanted evaluation."""
        return self.leg.points[self.stage]

    @property
    def goal(self) -> Level:
        """Level at the end of the current outer step."""
        return self.leg.goal

    @cached_property
    def levels(self) -> Levels:
        """Where x stands before each outer step, and at the end of the run."""
        return (*(leg.level for leg in self.legs), self.legs[-1].goal)


class Sampler(ABC):
    """Settings are fields of a frozen dataclass; the state is passed, never hidden."""

    order: ClassVar[int]  # convergence order of the deterministic part
    stages: ClassVar[int] = 1  # evaluations per outer step (a step that ends at clean data may have fewer)
    stochastic: bool = False  # whether a run takes noise

    @abstractmethod
    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        """The legs of a run, with coefficients in float64.

        levels: decreasing in noise, one more than there are steps. schedule: for samplers that evaluate between the
        levels of the grid; `between` asks for it.
        """

    @abstractmethod
    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        """The ordinary update on a consistent prediction."""

    def init(self, x: Tensor, levels: Levels, schedule: NoiseSchedule | None = None) -> State:
        """x: (B, ...) at levels[0]."""
        return State(x, self.plan(levels, schedule))

    def wants_noise(self, state: State) -> bool:
        """Is noise consumed by the next `tell`?"""
        if state.stage + 1 < len(state.leg.points):
            return False
        return state.leg.fresh or rises(state) is not None

    def tell(self, state: State, prediction: Prediction, noise: Tensor | None = None) -> State:
        """Advance by one evaluation. Two laws stand here, once for every sampler. For inconsistent predictions: run the
        step on the base, keep the base in the history, then add alpha' (denoised - base.denoised); a corrector, which
        goes nowhere, runs on the base alone. For legs that start above the end of the one before: lift x by fresh
        noise."""
        if prediction.base is not None and not state.shifted:
            state = replace(state, shifted=True)
        after = self.advance(state, prediction.step_on, noise)
        if after.stage:
            return after
        if prediction.base is not None and state.leg.level != state.goal:
            shift = prediction.denoised - prediction.base.denoised
            after = replace(after, x=torch.add(after.x, shift, alpha=state.goal.alpha))
        lift = rises(state)
        if lift is None:
            return after
        assert noise is not None, "a leg that starts higher needs noise"
        return replace(after, x=torch.add(after.x * lift[0], noise, alpha=lift[1]))


def rises(state: State) -> tuple[float, float] | None:
    """(weight of x, weight of fresh noise) that lift x from the goal of this leg to the start of the next one:
    x_b = (alpha_b / alpha_a) x_a + s sqrt(sigma_b^2 - sigma_a^2 alpha_b^2 / alpha_a^2) xi, with s the `lift` of the
    next one, 1 for the right amount."""
    legs, step = state.legs, state.step
    if step + 1 >= len(legs):
        return None
    following = legs[step + 1]
    here, there = legs[step].goal, following.points[0]
    if there is here or there == here:  # nearly always the same object
        return None
    assert not state.leg.fresh, "a stochastic step cannot be followed by a rise"
    keep = there.alpha / here.alpha
    return keep, following.lift * math.sqrt(max(0.0, there.sigma**2 - (here.sigma * keep) ** 2))


def configured(cls: type[Sampler], settings: Mapping[str, Any]) -> Sampler:
    """A sampler with settings by name. Raises UsageError for unknown ones."""
    check_settings(cls.__name__, settings, (field.name for field in fields(cls)) if is_dataclass(cls) else ())
    return cls(**settings)


def finish(state: State, x: Tensor, *history: Tensor) -> State:
    """The state after a completed outer step."""
    return State(x, state.legs, state.step + 1, history=history, memory=state.memory, shifted=state.shifted)


def between(level: Level, goal: Level, share: float, schedule: NoiseSchedule | None) -> Level:
    """The level at `share` of the way from `level` to `goal` in lam = log(alpha / sigma), both finite."""
    if schedule is None:
        raise UsageError("this sampler evaluates between the levels of the grid: pass the schedule to init or plan")
    return schedule.level_of_rho(math.exp(-(level.lam + share * (goal.lam - level.lam))))
