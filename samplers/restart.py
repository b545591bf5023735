"""Restart: Xu et al. 2023, arXiv 2306.14878, Algorithm 1. Heun's method, and from time to time back up.

After the main run reaches rho_min, `repeats` times: x is lifted to rho_max by fresh noise and brought down again to
rho_min by Heun steps on a Karras grid (p = 7) of its own. Noise far above the step size forgets the errors made so far,
as the SDE does, while the steps themselves stay those of the ODE.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from ..errors import UsageError
from .heun import HeunSteps, heun_leg
from .sampler import Leg, Levels
from .schedule import Level, NoiseSchedule


class Interval(NamedTuple):
    """low, high: rho_min, snapped to the nearest level of the main grid, and rho_max. points: levels of the way down,
    both ends counted, so points - 1 steps of two evaluations. repeats: how often it is gone."""

    low: float
    high: float
    points: int
    repeats: int


@dataclass(frozen=True)
class RestartSampler(HeunSteps):
    """One interval by `low`, `high`, `points` and `repeats` (the defaults are the source's for CIFAR-10), or several by
    `intervals`, a tuple of `Interval`s or of (low, high, points, repeats), which then stand for the first four.

    noise: scales the noise of the lifts (S_noise). repeats = 0 is Heun. Every repeat costs 2 (points - 1) evaluations.
    Raises UsageError where the grid has no level below an interval's high: take more steps, or another interval.
    The source's for ImageNet 64 x 64, 36 main steps: (19.35, 40.79, 4, 1), (1.09, 1.92, 4, 1), (0.59, 1.09, 4, 5),
    (0.30, 0.59, 4, 5), (0.06, 0.30, 6, 6) with noise = 1.003.
    """

    low: float = 0.06
    high: float = 0.3
    points: int = 3
    repeats: int = 2
    noise: float = 1.0
    intervals: tuple[Interval | tuple[float, float, int, int], ...] = ()

    def __post_init__(self) -> None:
        for interval in self._intervals():
            if not 0 < interval.low < interval.high:
                raise UsageError(f"restart goes from high to low: 0 < low < high, not {interval.low}, {interval.high}")
            if interval.points < 2 or interval.repeats < 0:
                raise UsageError("restart needs points of at least 2 and repeats of at least 0")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return any(interval.repeats for interval in self._intervals())

    def _intervals(self) -> tuple[Interval, ...]:
        if self.intervals:
            return tuple(Interval(*interval) for interval in self.intervals)
        return (Interval(self.low, self.high, self.points, self.repeats),)

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        back: dict[int, list[Leg]] = {}
        for interval in self._intervals():
            if interval.repeats:
                bottom = snapped(interval, levels)
                back.setdefault(bottom, []).extend(self._restarts(interval, levels[bottom], schedule))
        return tuple(
            leg
            for end, (level, goal) in enumerate(pairwise(levels), start=1)
            for leg in (heun_leg(level, goal), *back.get(end, ()))
        )

    def _restarts(self, interval: Interval, bottom: Level, schedule: NoiseSchedule | None) -> Iterator[Leg]:
        if schedule is None:
            raise UsageError("restart goes between the levels of the grid: pass the schedule to init or plan")
        down = (*schedule.levels_of_rho(karras_rhos(interval.high, bottom.rho, interval.points)[:-1]), bottom)
        for _ in range(interval.repeats):
            yield from (heun_leg(level, goal, self.noise) for level, goal in pairwise(down))


def snapped(interval: Interval, levels: Levels) -> int:
    """Number of the level, after the first and above clean data, whose rho is nearest to the interval's low."""
    inside = [i for i, level in enumerate(levels) if i and 0 < level.rho < interval.high]
    if not inside:
        raise UsageError(f"no level of this grid lies below restart's high={interval.high}; take more steps")
    return min(inside, key=lambda i: abs(levels[i].rho - interval.low))


def karras_rhos(first: float, last: float, points: int, p: float = 7.0) -> list[float]:
    """rho^(1/p) linear from first to last, both included."""
    a, b = first ** (1 / p), last ** (1 / p)
    return [math.pow(a + (b - a) * i / (points - 1), p) for i in range(points)]
