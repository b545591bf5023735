"""Steps that can be undone: from noise to data, and back to the same noise.

    state = method.begin(x_T, levels, denoiser.schedule)
    for i in range(len(levels) - 1):
        state = method.step(denoiser, state, i, condition)       # from levels[i] to levels[i + 1]
    x_0 = method.end(state)
    for i in reversed(range(len(levels) - 1)):
        state = method.back(denoiser, state, i, condition)       # the state before step i

A method with `exact` undoes its own steps to rounding, because what it carries is more than one x. So a picture can be
inverted without loss, and a gradient can be swept back over reconstructed states instead of stored ones. All
coefficients are Python floats, made once in float64 by `plan`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from ...errors import UsageError
from ..denoiser import Denoiser
from ..prediction import working_precision
from ..sampler import Leg, Levels
from ..schedule import NoiseSchedule


@dataclass(frozen=True, eq=False)
class Carried:
    """What a run carries from step to step.

    tensors: all that a step takes and gives, each (B, ...); how many is up to the method and the step. Nothing else
    depends on x, so a derivative of a step is a derivative in these. legs: the plan; `Leg.weights` are the method's.
    changes: of `back` by iteration, one (B,) a step taken back, the latest last; empty for closed forms.
    """

    tensors: tuple[Tensor, ...]
    legs: tuple[Leg, ...]
    changes: tuple[Tensor, ...] = ()

    @property
    def steps(self) -> int:
        return len(self.legs)

    def now(self, *tensors: Tensor) -> Carried:
        """The same run with these tensors."""
        return replace(self, tensors=tensors)


class ReversibleStep(ABC):
    """Settings are fields of a frozen dataclass; all else is in what is carried.

    exact: whether `back` undoes `step` to rounding. first: the earliest i whose state knows all that it carries: 1 for
    methods that carry two levels, whose first step is DDIM's. order: of convergence to the flow.
    """

    exact: ClassVar[bool] = True
    first: ClassVar[int] = 0
    order: ClassVar[int] = 1

    @abstractmethod
    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        """One leg a step. schedule: for methods that evaluate between the levels."""

    @abstractmethod
    def begin(self, x: Tensor, levels: Levels, schedule: NoiseSchedule | None = None) -> Carried:
        """The state before step 0. x: (B, ...) at levels[0]; half precision becomes float32, for lower bits are what a
        reconstruction lives on. Raises UsageError for levels that the method cannot start from."""

    @abstractmethod
    def step(self, denoiser: Denoiser, state: Carried, i: int, condition: Any = None) -> Carried:
        """The state after step i, from the one before it."""

    @abstractmethod
    def back(self, denoiser: Denoiser, state: Carried, i: int, condition: Any = None) -> Carried:
        """The state before step i, from the one after it."""

    @abstractmethod
    def end(self, state: Carried) -> Tensor:
        """x after the last step that was taken."""

    def begin_at_data(
        self,
        denoiser: Denoiser,
        x: Tensor,
        levels: Levels,
        schedule: NoiseSchedule | None = None,
        condition: Any = None,
    ) -> Carried:
        """The state after the last step, of a run that is only known to end at x (B, ...): begin an inversion here."""
        return self.begin(x, levels, schedule)

    def noise(self, state: Carried) -> Tensor:
        """x at levels[0], from the state before step `first`."""
        return state.tensors[0]


def checked(levels: Levels) -> Levels:
    """Refuse a grid that cannot be stepped along."""
    if len(levels) < 2:
        raise UsageError("a run needs at least two levels: make_grid(grid, schedule, steps) with steps of 1 or more")
    if any(goal.rho >= level.rho for level, goal in pairwise(levels)):
        raise UsageError("levels must fall in noise, from levels[0] to levels[-1]; make them with make_grid")
    return levels


def legs_of(levels: Levels, weights: Sequence[Any], middles: Levels | None = None) -> tuple[Leg, ...]:
    """A leg a step: its start, a middle where there is one, and, so that the end of the run can be asked about, the
    goal of the last one."""
    legs = []
    for i, (level, goal) in enumerate(pairwise(checked(levels))):
        middle = () if middles is None else (middles[i],)
        last = (goal,) if i == len(levels) - 2 else ()
        legs.append(Leg((level, *middle, *last), goal, weights[i]))
    return tuple(legs)


def started(x: Tensor, copies: int, legs: tuple[Leg, ...]) -> Carried:
    """x, in so many copies."""
    return Carried((working_precision(x),) * copies, legs)
