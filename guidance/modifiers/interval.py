"""Limited-interval guidance: Kynkäänniemi et al. 2024, arXiv 2404.07724. Outside the window one branch is evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ...errors import UsageError
from ..rule import Ask, Context, Guide, Modifier


@dataclass(frozen=True)
class Interval(Modifier):
    """Guide only while low < v <= high, where v is the noise level rho, or with `unit` "step" the index of the outer
    step, or with "fraction" the share of the run that is done (low <= v < high for these two).

    Noise levels keep their meaning when the number of steps or the grid changes; steps and fractions move with them.
    """

    low: float = 0.0
    high: float = math.inf
    unit: str = "rho"

    order: ClassVar[int] = 40
    passes: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.unit not in ("rho", "step", "fraction"):
            raise UsageError(f"interval unit {self.unit!r} is unknown; use rho, step or fraction")
        if not self.low <= self.high:
            raise UsageError(f"interval low={self.low} lies above high={self.high}; swap them")

    def inside(self, ctx: Context) -> bool:
        if self.unit == "rho":
            return self.low < ctx.start.rho <= self.high
        value = ctx.step if self.unit == "step" else ctx.progress
        return self.low <= value < self.high

    def guide(self, ctx: Context) -> Guide:
        if self.inside(ctx):
            return (yield from self.rule.guide(ctx))
        ctx.log(scale=1.0)
        (cond,) = yield (Ask(),)
        return cond
