"""DEIS, the time-based Adams-Bashforth form (tAB): Zhang & Chen 2022, arXiv 2204.13902.

The noise form d(x/alpha)/d rho = noise with `noise` a polynomial, not in rho itself but in a variable s of it:

    x'/alpha' = x/alpha + sum_j C_j noise_{-j},    C_j = INT_rho^rho' l_j(s(r)) dr

with l_j the Lagrange basis over the s of the evaluations. s = t is tAB-DEIS, s = rho rhoAB-DEIS, which is the linear
multistep method (LMS), and s = log rho is what diffusers has. The C_j are integrals in log rho by Gauss-Legendre
quadrature.
The first steps and the last one, to clean data, are of lower order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ..errors import UsageError, nearest
from .multistep import NoiseMultistep
from .sampler import Levels
from .schedule import Level, NoiseSchedule

VARIABLES = ("log-rho", "rho", "t")
POINTS, POINT_WEIGHTS = np.polynomial.legendre.leggauss(24)


@dataclass(frozen=True)
class DEISSampler(NoiseMultistep):
    """order: 1 .. 4; 1 is DDIM. variable: "log-rho", "rho" or "t", that in which the noise is a polynomial."""

    order: int = field(default=3)  # type: ignore[misc]
    variable: str = "log-rho"

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise UsageError(f"the order of {type(self).__name__} is 1, 2, 3 or 4, not {self.order}")
        if self.variable not in VARIABLES:
            raise UsageError(f"unknown variable {self.variable!r}: {nearest(self.variable, VARIABLES)}")

    def integrals(self, nodes: Levels, goal: Level, schedule: NoiseSchedule | None) -> tuple[float, ...]:
        first, last = math.log(nodes[0].rho), math.log(goal.rho)
        rho = np.exp((first + last) / 2 + (last - first) / 2 * POINTS)
        weights = POINT_WEIGHTS * (last - first) / 2 * rho  # dr = rho d(log rho)
        places = self._places(np.array([node.rho for node in nodes]), schedule)
        basis = lagrange(places, self._places(rho, schedule))
        return tuple((basis[1:] @ weights).tolist())

    def _places(self, rho: np.ndarray, schedule: NoiseSchedule | None) -> np.ndarray:
        """s of these noise levels."""
        if self.variable == "rho":
            return rho
        if self.variable == "log-rho":
            return np.log(rho)
        if schedule is None:
            raise UsageError("variable=t needs the times of the levels: pass the schedule to init or plan")
        return schedule.t_of_rho(rho).numpy()


def lagrange(nodes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(nodes, places): value at each place of the polynomial that is 1 at a node and 0 at the others."""
    values = np.ones((len(nodes), len(places)))
    for j, node in enumerate(nodes):
        for other in np.delete(nodes, j):
            values[j] *= (places - other) / (node - other)
    return values


@dataclass(frozen=True)
class LMSSampler(DEISSampler):
    """The linear multistep method: DEIS with a polynomial in rho."""

    order: int = field(default=4)  # type: ignore[misc]
    variable: str = "rho"
