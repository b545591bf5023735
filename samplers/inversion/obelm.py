"""O-BELM: Wang et al. 2024, arXiv 2410.07273. The leapfrog for steps of changing length, in u = x / alpha over rho."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import UsageError
from ..schedule import Level
from .two_level import ThreeTerm, TwoLevel


@dataclass(frozen=True)
class OBELM(TwoLevel):
    """With d1 = rho_i - rho_{i-1}, d2 = rho_{i+1} - rho_i and d3 = d1 + d2,

        u_{i+1} = (d2/d1)^2 u_{i-1} + (d1 - d2) d3 / d1^2 u_i + (d2 d3 / d1) noise_i.

    One call a step. It has no settings. Going back divides by (d2/d1)^2, which stays harmless in a round trip: the run
    forth multiplied by it.
    """

    order: ClassVar[int] = 2

    def three_term(self, before: Level, here: Level, after: Level) -> ThreeTerm:
        if before.alpha <= 0:
            raise UsageError("o-belm needs a finite rho: start the grid below pure noise, or use bdia")
        d1, d2 = here.rho - before.rho, after.rho - here.rho
        d3 = d1 + d2
        return ThreeTerm(
            after.alpha / before.alpha * (d2 / d1) ** 2,
            after.alpha / here.alpha * (d1 - d2) * d3 / d1**2,
            after.alpha * d2 * d3 / d1,
        )
