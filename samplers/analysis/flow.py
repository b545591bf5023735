"""Quadrature along the probability-flow ODE in lam, for states of several tensors: position and what rides on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from ...errors import UsageError
from ..grids import make_grid
from ..sampler import Levels, between
from ..schedule import Level, NoiseSchedule

Rates = tuple[Tensor, ...]
Slope = Callable[[Level, Rates], Rates]  # (level, state) -> d state / d lam


def integrate(slope: Slope, state: Rates, levels: Sequence[Level], schedule: NoiseSchedule, method: str) -> Rates:
    """The state at the last level, from the state at the first. The levels may run either way; all have finite lam.

    method: "heun" (order 2, on the levels alone) or "rk4" (order 4, with a level in the middle of each step).
    """
    steppers = {"heun": _heun, "rk4": _rk4}
    if method not in steppers:
        raise UsageError(f"method is 'heun' or 'rk4', not {method!r}")
    for level, goal in pairwise(levels):
        state = steppers[method](slope, state, level, goal, schedule)
    return state


def upward(grid: Any, schedule: NoiseSchedule, steps: int) -> Levels:
    """The levels of a grid from its least noise to its most, without clean data; for integration towards noise."""
    levels = tuple(level for level in reversed(make_grid(grid, schedule, steps)) if level.sigma > 0)
    if levels[-1].alpha <= 0:
        raise UsageError("this grid begins at pure noise, where lam is infinite; use exponential or karras")
    if len(levels) < 2:
        raise UsageError("the grid has one noisy level; take 2 steps or more")
    return levels


def _moved(state: Rates, rates: Rates, by: float) -> Rates:
    return tuple(y + by * rate for y, rate in zip(state, rates))


def _heun(slope: Slope, state: Rates, level: Level, goal: Level, schedule: NoiseSchedule) -> Rates:
    h = goal.lam - level.lam
    first = slope(level, state)
    second = slope(goal, _moved(state, first, h))
    return tuple(y + h / 2 * (a + b) for y, a, b in zip(state, first, second))


def _rk4(slope: Slope, state: Rates, level: Level, goal: Level, schedule: NoiseSchedule) -> Rates:
    h, middle = goal.lam - level.lam, between(level, goal, 0.5, schedule)
    first = slope(level, state)
    second = slope(middle, _moved(state, first, h / 2))
    third = slope(middle, _moved(state, second, h / 2))
    fourth = slope(goal, _moved(state, third, h))
    return tuple(y + h / 6 * (a + 2 * b + 2 * c + d) for y, a, b, c, d in zip(state, first, second, third, fourth))
