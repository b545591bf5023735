"""FreeDoM: Yu et al. 2023, arXiv 2303.09833, as the unified code of arXiv 2409.15761 has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..rule import Context
from ..scale import Scale
from .autograd import NORMALISATIONS, check_word, is_zero, normalised
from .posterior import Look, Move, Posterior
from .strengths import STRENGTHS, strength


@dataclass(frozen=True)
class FreeDoM(Posterior):
    """x' = S(x, D) - weight_t grad_x loss(D(x)), `repeats` times a step with the noise put back in between.

    weight: 0 is off. growth: of weight_t, "constant", or "increase" or "decrease" as in TFG. normalise: as in dps.
    """

    weight: Scale = 1.0
    growth: str = "constant"
    normalise: str = "none"

    passes: ClassVar[int] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("freedom", "growth", self.growth, STRENGTHS)
        check_word("freedom", "normalise", self.normalise, NORMALISATIONS)

    @property
    def off(self) -> bool:
        return is_zero(self.weight)

    def move(self, ctx: Context, look: Look) -> Move:
        assert look.pull is not None
        size = normalised(self.normalise, look.pull, look.values, look.p.x, ctx)
        return None, size * (ctx.column(self.weight) * strength(self.growth, ctx) / -ctx.goal.alpha)
