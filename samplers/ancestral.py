"""Ancestral noise for single-step solvers, in the manner of k-diffusion: the step is solved down to a level below its
goal, and fresh noise lifts x up to the goal. With e^{-h} = rho' / rho,

    rho_up = eta rho' sqrt(1 - e^{-2h}),    rho_down = sqrt(rho'^2 - rho_up^2)
    x' = (alpha' / alpha_down) x_down + alpha' rho_up xi

eta counts as in DDIM: 1 is the noise of the reverse SDE. The solver follows the ODE, so its order is that of the
marginals: with every eta they come as close as the deterministic solver's, for what is added to them is exact. At
eta = 1 rho_down = rho'^2 / rho, and a stage halfway in lam stands at the goal itself; a step from pure noise has its
stage there, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import UsageError
from .exponential import stage_level
from .first_order import decay
from .sampler import Leg
from .schedule import Level, NoiseSchedule
from .single_step import SingleStep, Stage


class Split(NamedTuple):
    """rho_down / rho' and rho_up / rho'; the squares add to 1."""

    kept: float
    fresh: float


def ancestral_split(eta: float, level: Level, goal: Level) -> Split:
    """Written so that `kept` keeps its digits where it is small."""
    e = decay(level, goal)
    return Split(math.sqrt(1 - eta**2 + (eta * e) ** 2), eta * math.sqrt(1 - e * e))


def check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise UsageError(f"eta must lie between 0, the ODE, and 1, full ancestral noise, not {eta}")


@dataclass(frozen=True)
class Ancestral(SingleStep):
    """Put before a two-stage solver in the list of parents. eta: 0 is that solver, 1 is full ancestral noise."""

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self.eta)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def leg(self, level: Level, goal: Level, schedule: NoiseSchedule | None) -> Leg:
        if goal.sigma <= 0 or not self.eta:
            return super().leg(level, goal, schedule)
        kept, fresh = ancestral_split(self.eta, level, goal)
        down = Level(goal.time, goal.alpha, goal.sigma * kept)  # its rho counts, and the factor alpha'
        (share, inner), (_, weights) = self.tableau(down.lam - level.lam)
        middle = stage_level(level, down, share, schedule) if kept else goal
        first = Stage(middle.sigma / level.sigma, tuple(middle.alpha * w for w in inner))
        last = Stage(down.sigma / level.sigma, tuple(goal.alpha * w for w in weights), goal.sigma * fresh)
        return Leg((level, middle), goal, (first, last), fresh=True)
