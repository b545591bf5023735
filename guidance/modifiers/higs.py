"""HiGS, history-guided sampling: Sadat et al. 2025, arXiv 2509.22300. Home space: denoised. Experimental."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

from ...errors import UsageError
from ..apg import projected
from ..compose import parts_of
from ..rule import Context, Guide, Modifier
from ..spatial import as_given, as_pictures, high_pass


@dataclass(frozen=True)
class HiGS(Modifier):
    """Push the guided clean estimate D away from the average of the earlier ones: D + w(t) F(P(D - h)).

    h <- (1 - average) h + average D starts at zero and keeps the uncorrected D; P leaves `parallel` of the part along
    D; F is a high-pass over cosine components, sigmoid(sharpness (R - cutoff)).
    weight: 0 is off. w(t) = weight sqrt((t - low) / (high - low)) for low < t <= high, else 0; t = rho / (1 + rho).
    cutoff=-inf: no filter. Experimental: the settings belong to a model and the paper's were not seen at first hand.
    """

    weight: float = 2.0
    average: float = 0.5
    low: float = 0.4
    high: float = 1.0
    parallel: float = 0.0
    cutoff: float = 0.05
    sharpness: float = 50.0

    order: ClassVar[int] = 24
    passes: ClassVar[int] = 21

    @property
    def spatial(self) -> bool:  # type: ignore[override]
        return self.rule.spatial or (self.weight != 0 and self.cutoff != -math.inf)

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise UsageError(f"higs needs 0 <= low < high <= 1, not low={self.low}, high={self.high}")
        if not 0 < self.average <= 1:
            raise UsageError(f"higs average={self.average} lies outside (0, 1]; the paper has 0.5 or 0.75")
        if any(getattr(rule, "momentum", 0.0) for rule in parts_of(self.rule)[0]):
            warnings.warn("higs and apg's momentum both use the earlier steps; set momentum=0", stacklevel=3)

    def strength(self, ctx: Context) -> float:
        """w(t) of this step."""
        t = ctx.start.sigma / (ctx.start.alpha + ctx.start.sigma)
        if not self.low < t <= self.high:
            return 0.0
        return self.weight * math.sqrt((t - self.low) / (self.high - self.low))

    def guide(self, ctx: Context) -> Guide:
        guided = yield from self.rule.guide(ctx)
        if self.weight == 0:
            return guided
        history, strength = ctx.recall(self), self.strength(ctx)
        ctx.keep(self, guided.denoised * self.average + (0 if history is None else (1 - self.average) * history))
        ctx.log(higs=0.0 if history is None else strength)
        if history is None or strength == 0:
            return guided
        change = projected(guided.denoised - history, guided.denoised, self.parallel)
        if self.cutoff != -math.inf:
            change = as_given(high_pass(as_pictures(change, ctx, "higs"), self.cutoff, self.sharpness), ctx)
        return guided.with_denoised(guided.denoised + strength * change)
