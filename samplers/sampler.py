"""Ask and tell: a sampler never calls the network.

    state = sampler.init(x, levels)
    while not state.done:
        prediction = denoiser(state.x, state.level)          # the sampler asks through its state
        state = sampler.tell(state, prediction, noise)       # and is told

So one update serves our own loop (differentiable, yields every step) and a diffusers scheduler class; both are short
drivers. All coefficients are Python floats that `plan` computes once in float64, so a step is a few tensor operations
and never reads from the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .prediction import Prediction
from .schedule import Level


@dataclass(frozen=True, eq=False)
class State:
    """Where a run is. Explicit, so that checkpoints, rewinds and replays are right.

    x, level: where the network is wanted now. step: outer steps done. stage: 0 starts an outer step.
    start: x at the beginning of the outer step. history: what the sampler keeps of earlier evaluations.
    memory: what guidance rules keep between outer steps; it travels with the state.
    """

    x: Tensor
    levels: tuple[Level, ...]
    plan: tuple[Any, ...]
    step: int = 0
    stage: int = 0
    start: Tensor | None = None
    history: tuple[Tensor, ...] = ()
    memory: Any = None

    @property
    def done(self) -> bool:
        return self.step >= len(self.levels) - 1

    @property
    def level(self) -> Level:
        """Level of the wanted evaluation (later stages of our samplers look from the step's end)."""
        return self.levels[self.step + (self.stage > 0)]

    @property
    def goal(self) -> Level:
        """Level at the end of the current outer step."""
        return self.levels[self.step + 1]


class Sampler(ABC):
    """Settings are fields of a frozen dataclass; the state is passed, never hidden."""

    order: ClassVar[int]  # convergence order of the deterministic part
    stages: ClassVar[int] = 1  # evaluations per outer step
    stochastic: bool = False  # whether `tell` takes noise

    @abstractmethod
    def plan(self, levels: tuple[Level, ...]) -> tuple[Any, ...]:
        """One entry of coefficients for each outer step, in float64."""

    @abstractmethod
    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        """The ordinary update on a consistent prediction."""

    def init(self, x: Tensor, levels: tuple[Level, ...]) -> State:
        """x: (B, ...) at levels[0]. levels: decreasing in noise, one more than there are outer steps."""
        return State(x, levels, self.plan(levels))

    def stages_of(self, coefficients: Any) -> int:
        """Evaluations of the outer step with these coefficients."""
        return self.stages

    def wants_noise(self, state: State) -> bool:
        """Is noise consumed by the next `tell`? Never on a step that ends at clean data."""
        return self.stochastic and state.stage == self.stages - 1 and state.goal.sigma > 0

    def tell(self, state: State, prediction: Prediction, noise: Tensor | None = None) -> State:
        """Advance by one evaluation. The law for inconsistent predictions stands here, once for every sampler:
        run the step on the base, keep the base in the history, then add alpha' (denoised - base.denoised)."""
        after = self.advance(state, prediction.step_on, noise)
        if prediction.base is not None and after.stage == 0:
            shift = prediction.denoised - prediction.base.denoised
            after = replace(after, x=torch.add(after.x, shift, alpha=state.goal.alpha))
        return after


def finish(state: State, x: Tensor, *history: Tensor) -> State:
    """The state after a completed outer step."""
    return State(x, state.levels, state.plan, state.step + 1, history=history, memory=state.memory)
