"""LGD, loss-guided diffusion: Song et al. 2023 (ICML), as the unified code of arXiv 2409.15761 has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..rule import Context
from ..scale import Scale
from .autograd import is_zero
from .posterior import Look, Move, Posterior, refuse_few


@dataclass(frozen=True)
class LGD(Posterior):
    """x' = S(x, D) + weight grad_x log mean_j exp(- loss(D + spread sigma n_j)).

    weight: 0 is off. samples: draws n_j, 10 in the code. spread: of the draws in units of sigma; 0 is DPS without its
    normalisation. (The code divides by the number of samples once more; that is not copied.)
    """

    weight: Scale = 1.0
    samples: int = 10
    spread: float = 1.0

    passes: ClassVar[int] = 35

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_few("lgd", "samples", self.samples)

    @property
    def off(self) -> bool:
        return is_zero(self.weight)

    def smoothing(self, ctx: Context) -> tuple[int, float]:
        return self.samples, self.spread * ctx.level.sigma

    def move(self, ctx: Context, look: Look) -> Move:
        assert look.pull is not None
        return None, look.pull * (ctx.column(self.weight) / -ctx.goal.alpha)
