"""DPM++ 2S a of k-diffusion: a step of DPM-Solver++(2S) to a level below the goal, and fresh noise back up to it.

See `ancestral`; the solver is Lu et al. 2022, arXiv 2211.01095, Algorithm 1, with r = 1/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .ancestral import Ancestral
from .dpmpp_2s import DPMPP2SSampler


@dataclass(frozen=True)
class DPMPP2SAncestralSampler(Ancestral):
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2

    def tableau(self, h: float) -> tuple[tuple[float, tuple[float, ...]], ...]:
        return DPMPP2SSampler().tableau(h)
