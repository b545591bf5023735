"""A step in variables in which the flow is a plain ODE: one slope, no drift.

    dw/dgamma = denoised,    w = x / sigma, gamma = alpha / sigma      while noise prevails, rho' = sigma'/alpha' >= 1
    du/drho = noise,         u = x / alpha, rho = sigma / alpha        afterwards, down to clean data

Where noise prevails the clean estimate hardly depends on x, and where data prevail the noise estimate hardly does; each
line is used where it is the tame one. Two copies that are coupled drift apart under the other: on the embedded model
in 25 steps McCallum-Foster and reversible Heun undo their steps to 4e-6 this way, with noise alone to 2e-4 and 1e-4
(benchmarks/inversion_round_trip.py has the first figures).
"""

from __future__ import annotations

from typing import NamedTuple

from ...errors import UsageError
from ..schedule import Level, NoiseSchedule


class Scaled(NamedTuple):
    """slope: `noise` or `denoised`. start, goal: what x is divided by at both ends. h: the length of the step, with its
    sign. middle: the divisor half-way."""

    slope: str
    start: float
    goal: float
    h: float
    middle: float = 1.0


def scaled_step(level: Level, goal: Level, middle: Level | None = None) -> Scaled:
    if noise_prevails(level, goal):
        return Scaled("denoised", level.sigma, goal.sigma, gamma(goal) - gamma(level), middle.sigma if middle else 1.0)
    return Scaled("noise", level.alpha, goal.alpha, goal.rho - level.rho, middle.alpha if middle else 1.0)


def noise_prevails(level: Level, goal: Level) -> bool:
    if level.alpha <= 0 and goal.sigma <= 0:
        raise UsageError("one step from pure noise to clean data has no reverse; use more steps")
    return level.alpha <= 0 or goal.rho >= 1


def gamma(level: Level) -> float:
    return level.alpha / level.sigma


def halfway(level: Level, goal: Level, schedule: NoiseSchedule | None) -> Level:
    """The level in the middle of the step, in gamma or in rho."""
    if schedule is None:
        raise UsageError("the midpoint looks between the levels of the grid: pass schedule=denoiser.schedule to begin")
    if noise_prevails(level, goal):
        return schedule.level_of_rho(2 / (gamma(level) + gamma(goal)))
    return schedule.level_of_rho((level.rho + goal.rho) / 2)
