"""DPM-Solver++(2S): Lu et al. 2022, arXiv 2211.01095, Algorithm 1. Two evaluations a step, the inner one at share r:

x_m = (sigma_m / sigma) x - alpha_m expm1(-r h) D_0
x'  = (sigma' / sigma) x - alpha' expm1(-h) ((1 - 1/(2r)) D_0 + D_m / (2r))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import UsageError
from .exponential import matched, moments
from .single_step import SingleStep


@dataclass(frozen=True)
class DPMPP2SSampler(SingleStep):
    """r: share of the step, in lam, at which the inner evaluation stands, in (0, 1]; 1/2 is the midpoint rule."""

    r: float = 0.5
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 0 < self.r <= 1:
            raise UsageError(f"r is a share of the step in (0, 1], not {self.r}")

    def tableau(self, h: float) -> tuple[tuple[float, tuple[float, ...]], ...]:
        (whole,), (part,) = moments(h, 1), moments(self.r * h, 1)
        return (self.r, (part,)), (1.0, matched((0.0, self.r), (whole, whole / 2)))
