"""DPS, diffusion posterior sampling: Chung et al. 2023, arXiv 2209.14687, Algorithm 1, line 7."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..rule import Context
from ..scale import Scale
from .autograd import NORMALISATIONS, check_word, is_zero, normalised
from .posterior import Look, Move, Posterior


@dataclass(frozen=True)
class DPS(Posterior):
    """x' = S(x, D) - weight grad_x |y - A(D(x))|, with S the step of any sampler.

    weight: 0 is off. normalise: "root" divides the loss's gradient by 2 sqrt(loss), which is the line above when the
    loss is the squared residual; "loss" divides by |loss| (the unified code of TFG); "none", "unit", "x" (the norm of
    x).
    """

    weight: Scale = 1.0
    normalise: str = "root"

    passes: ClassVar[int] = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("dps", "normalise", self.normalise, NORMALISATIONS)

    @property
    def off(self) -> bool:
        return is_zero(self.weight)

    def move(self, ctx: Context, look: Look) -> Move:
        assert look.pull is not None
        size = normalised(self.normalise, look.pull, look.values, look.p.x, ctx)
        return None, size * (ctx.column(self.weight) / -ctx.goal.alpha)
