"""DPM-Solver++(3S): Lu et al. 2022, arXiv 2211.01095. Three evaluations a step, at shares 0, r1 and r2 of it in lam:

x_1 = (sigma_1/sigma) x - alpha_1 expm1(-r1 h) D_0
x_2 = (sigma_2/sigma) x - alpha_2 expm1(-r2 h) D_0 + (r2/r1) alpha_2 (expm1(-r2 h)/(r2 h) + 1) (D_1 - D_0)
x'  = (sigma'/sigma) x - alpha' expm1(-h) D_0 + (1/r2) alpha' (expm1(-h)/h + 1) (D_2 - D_0)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import UsageError
from .exponential import matched, moments
from .single_step import SingleStep


@dataclass(frozen=True)
class DPMPP3SSampler(SingleStep):
    """r1, r2: shares of the step in lam, 0 < r1 < r2 < 1. The method is of third order at r2 = 2/3."""

    r1: float = 1 / 3
    r2: float = 2 / 3
    order: ClassVar[int] = 3
    stages: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if not 0 < self.r1 < self.r2 < 1:
            raise UsageError(f"the stages stand at 0 < r1 < r2 < 1 of the step, not at {self.r1} and {self.r2}")

    def tableau(self, h: float) -> tuple[tuple[float, tuple[float, ...]], ...]:
        (first,), r1, r2 = moments(self.r1 * h, 1), self.r1, self.r2
        second, (start, end) = matched((0.0, r1 / r2), moments(r2 * h, 2)), matched((0.0, r2), moments(h, 2))
        return (r1, (first,)), (r2, second), (1.0, (start, 0.0, end))
