"""CFG++: Chung et al. 2024, arXiv 2406.08070, Algorithm 2. Guides the clean estimate, re-noises with the null noise.

The step of any solver is run on the unconditional prediction (the base), then alpha' (guided - base) is added; that law
stands in the samplers, once. On DDIM and Euler it equals CFG with the scale lam / (1 - rho'/rho).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

from ..errors import UsageError
from .rule import Ask, Context, Guide, Rule


@dataclass(frozen=True)
class CFGPP(Rule):
    """lam: 0 is unconditional, 1 aims at the conditional estimate but keeps the null noise (it is *not* off).

    At a fixed `lam` the strength grows with the number of steps. `scale` is the alternative in CFG units,
    lam_i = scale (1 - rho'/rho), whose strength does not depend on the number of steps. Give one of the two.
    """

    lam: float | None = None
    scale: float | None = None

    passes: ClassVar[int] = 3
    needs: ClassVar[tuple[str, ...]] = ("cond", "uncond")
    shifts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.lam is not None and self.scale is not None:
            raise UsageError("cfg++ takes lam or scale, not both: lam=0.6, or scale=7.5 in CFG units")
        if self.lam is None and self.scale is None:
            object.__setattr__(self, "lam", 0.6)
        if self.lam is not None and self.lam > 1:
            warnings.warn(f"cfg++ lam={self.lam} is above 1; a CFG scale goes into scale=", stacklevel=3)

    def weight(self, ctx: Context) -> float:
        """lambda of this step."""
        if self.lam is not None:
            return self.lam
        assert self.scale is not None
        return self.scale * step_share(ctx)

    def guide(self, ctx: Context) -> Guide:
        lam = self.weight(ctx)
        ctx.log(lam=lam, scale=lam / share if (share := step_share(ctx)) else math.inf)
        if lam == 0:
            (uncond,) = yield (Ask("uncond"),)
            return uncond
        cond, uncond = yield Ask(), Ask("uncond")
        guided = cond.native if lam == 1 else uncond.native + lam * (cond.native - uncond.native)
        return uncond.like(guided).renoised_with(uncond)


def step_share(ctx: Context) -> float:
    """1 - rho'/rho of the step: 1 when it starts at pure noise or ends at clean data."""
    return 1 - ctx.goal.sigma * ctx.start.alpha / (ctx.goal.alpha * ctx.start.sigma)
