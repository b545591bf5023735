"""DPM-Solver++(2M) and its stochastic form: Lu et al. 2022, arXiv 2211.01095, Algorithm 2 and Appendix F.

With h = lam' - lam, H = (1 + eta) h, r = (lam - lam_before) / h, D_1 = (D - D_before) / r and fresh noise xi,

    x' = (sigma'/sigma) e^{-eta h} x + alpha' (M_0 D + M_1 D_1) + sigma' sqrt(1 - e^{-2 eta h}) xi
    M_0 = -expm1(-H),    M_1 = M_0 / 2 (midpoint)  or  expm1(-H)/H + 1 (heun)

The first step, one that follows pure noise (lam = -inf), and the last one to sigma' = 0 are of first order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import UsageError, nearest
from .exponential import moments
from .multistep import DataMultistep

SOLVERS = ("midpoint", "heun")


@dataclass(frozen=True)
class SDEDPMPP2MSampler(DataMultistep):
    """eta: 0 is DPM++ 2M (the ODE), 1 the reverse SDE. solver: "midpoint" takes the mean of a step's `denoised` at its
    middle; "heun" integrates its straight line exactly."""

    eta: float = 1.0
    solver: str = "midpoint"
    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise UsageError(f"unknown solver {self.solver!r}: {nearest(self.solver, SOLVERS)}")

    def wanted(self, h: float, count: int) -> list[float]:
        whole, *rest = moments(h, count)
        return [whole, *(whole / 2 for _ in rest)] if self.solver == "midpoint" else [whole, *rest]


@dataclass(frozen=True)
class DPMPP2MSampler(SDEDPMPP2MSampler):
    """The deterministic member."""

    eta: float = 0.0
