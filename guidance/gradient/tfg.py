"""TFG, training-free guidance: Ye et al. 2024, arXiv 2409.15761, Algorithm 1. The family in one rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..rule import Context
from .autograd import check_word
from .posterior import Look, Move, Posterior, descended, refuse_few
from .strengths import STRENGTHS, strength


@dataclass(frozen=True)
class TFG(Posterior):
    """x' = S(x, D) + delta_t / sqrt(a_t / a_t') + sqrt(a_t') delta_0, with l~(z) = log mean_j exp(- loss(z + std n_j)):
    delta_t = rho_t grad_x l~(D(x)), delta_0 the sum of `steps` steps of mu_t grad l~ from D.

    rho and mu 0 is off; rho 0 needs no graph of the network. spread: std = spread sigma, 0 does not smooth. samples:
    draws n_j. growth: of rho_t and mu_t over the run. steps of mu; repeats. Defaults are those for labels on CIFAR-10.
    mu = spread = 0 is FreeDoM times alpha' / alpha; rho = spread = 0, steps = 1 is MPGD.
    """

    rho: float = 1.0
    mu: float = 0.25
    spread: float = 0.001
    steps: int = 4
    samples: int = 1
    growth: str = "increase"

    passes: ClassVar[int] = 28

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("tfg", "growth", self.growth, STRENGTHS)
        refuse_few("tfg", "samples", self.samples)
        refuse_few("tfg", "steps", self.steps, 0)

    @property
    def off(self) -> bool:
        return self.rho == 0 and (self.mu == 0 or self.steps == 0)

    @property
    def through(self) -> bool:
        return self.rho != 0

    def smoothing(self, ctx: Context) -> tuple[int, float]:
        level = ctx.level
        return self.samples, self.spread * level.sigma / (level.alpha**2 + level.sigma**2) ** 0.5

    def move(self, ctx: Context, look: Look) -> Move:
        share, kept = strength(self.growth, ctx), None
        if look.pull is not None and ctx.level.alpha > 0:
            kept = look.pull * (-self.rho * share / ctx.level.alpha)
        if self.mu and self.steps:
            change = descended(look, lambda slope, z: -self.mu * share * slope, int(self.steps))
            kept = change if kept is None else kept + change
        return None, kept
