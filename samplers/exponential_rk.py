"""The second-order exponential Runge-Kutta method in lam, in the manner of RES, the refined exponential solver.

With phi_1 = (1 - e^{-h}) / h and phi_2 = (1 - phi_1) / h, and the inner evaluation D_m at share c2 of the step,

    x' = (sigma'/sigma) x + alpha' h ((phi_1 - phi_2 / c2) D_0 + (phi_2 / c2) D_m)

It integrates a `denoised` that is linear in lam exactly, where DPM++ 2S takes its value at the middle; at equal steps
the error is about half. The coefficients are derived here, not taken from the tables of RES.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import UsageError
from .exponential import matched, moments
from .single_step import SingleStep


@dataclass(frozen=True)
class ExponentialRKSampler(SingleStep):
    """c2: share of the step, in lam, at which the inner evaluation stands, in (0, 1]."""

    c2: float = 0.5
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 0 < self.c2 <= 1:
            raise UsageError(f"c2 is a share of the step in (0, 1], not {self.c2}")

    def tableau(self, h: float) -> tuple[tuple[float, tuple[float, ...]], ...]:
        (part,) = moments(self.c2 * h, 1)
        return (self.c2, (part,)), (1.0, matched((0.0, self.c2), moments(h, 2)))
