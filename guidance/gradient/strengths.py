"""How a weight is spread over the run: N s_t / sum s of Ye et al. 2024, arXiv 2409.15761."""

from __future__ import annotations

from functools import lru_cache

from ...samplers.schedule import Level, NoiseSchedule
from ..rule import Context

STRENGTHS = ("increase", "decrease", "constant")


def strength(growth: str, ctx: Context) -> float:
    """s_t over its mean on a run: s_t is a_t / a_t' ("increase"), 1 - a_t / a_t' ("decrease") or 1, with the share of
    signal a = alpha^2 / (alpha^2 + sigma^2), which is alphas_cumprod.

    A rule does not see the other levels of its run, so the mean is that of as many even steps in time: on grids that
    are even in time the factors average to 1, on others only nearly.
    """
    if growth == "constant":
        return 1.0
    return _share(growth, ctx.start, ctx.goal) / _mean_share(growth, ctx.schedule, ctx.steps)


def _power(level: Level) -> float:
    return level.alpha**2 / (level.alpha**2 + level.sigma**2)


def _share(growth: str, start: Level, goal: Level) -> float:
    ratio = _power(start) / _power(goal)
    return ratio if growth == "increase" else 1 - ratio


@lru_cache(maxsize=256)
def _mean_share(growth: str, schedule: NoiseSchedule, steps: int) -> float:
    times = [schedule.T + (schedule.t_min - schedule.T) * i / steps for i in range(steps)]
    levels = [*schedule.levels(times), schedule.clean]
    return sum(_share(growth, a, b) for a, b in zip(levels, levels[1:])) / steps
