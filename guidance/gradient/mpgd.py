"""MPGD, manifold preserving guided diffusion: He et al. 2024, arXiv 2311.16424, without its autoencoder projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..rule import Context
from ..scale import Scale
from .autograd import NORMALISATIONS, check_word, is_zero, normalised
from .posterior import Look, Move, Posterior


@dataclass(frozen=True)
class MPGD(Posterior):
    """D~ = D - weight grad_D loss(D), x' = alpha' D~ + sigma' noise, the noise of D: no backward pass of the net.

    weight: 0 is off. normalise: as in dps, "x" being the norm of D. On latents it drifts: the paper projects by an
    autoencoder, which this does not.
    """

    weight: Scale = 1.0
    normalise: str = "none"

    passes: ClassVar[int] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("mpgd", "normalise", self.normalise, NORMALISATIONS)

    @property
    def off(self) -> bool:
        return is_zero(self.weight)

    @property
    def through(self) -> bool:
        return False

    def move(self, ctx: Context, look: Look) -> Move:
        z = look.p.denoised.detach()
        size = normalised(self.normalise, look.slope(z), look.values, z, ctx)
        return None, size * (-1 * ctx.column(self.weight))
