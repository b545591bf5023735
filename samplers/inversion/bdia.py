"""BDIA: Zhang et al. 2023, arXiv 2307.10829. The DDIM step on, less the DDIM step back, from the same slope."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UsageError
from ..schedule import Level
from .ddim_step import ddim_step
from .two_level import ThreeTerm, TwoLevel


@dataclass(frozen=True)
class BDIA(TwoLevel):
    """x_{i+1} = g x_{i-1} + (c - g c_back) x_i + (d - g d_back) noise(x_i), with (c, d) DDIM's from level i to i + 1,
    and (c_back, d_back) from level i back to i - 1. One call a step.

    g: 1 is of second order and keeps a round trip at rounding; below 1 it is of first order, and going back amplifies
    rounding by 1 / g a step: useless beyond 30 steps or so at 0.5.
    """

    g: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.g <= 1:
            raise UsageError(f"bdia g={self.g} must be above 0 and at most 1; 1 is the stable one")

    @property
    def order(self) -> int:  # type: ignore[override]
        return 2 if self.g == 1 else 1

    def three_term(self, before: Level, here: Level, after: Level) -> ThreeTerm:
        on, back = ddim_step(here, after), ddim_step(here, before)
        return ThreeTerm(self.g, on.keep - self.g * back.keep, on.gain - self.g * back.gain)
