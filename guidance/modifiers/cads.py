"""CADS, condition-annealed sampling: Sadat et al. 2024, arXiv 2310.17347. Noise on the conditioning, early on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import UsageError
from ..identity import identities
from ..rule import Ask, Context, Guide, Modifier, changed
from .conditioning import NoisyEdit, moments


@dataclass(frozen=True)
class CADS(Modifier):
    """Show the network sqrt(k) y + noise sqrt(1 - k) n for the conditioning y, n fresh at each step; more variety.

    t is the share of the run still to do. k = 1 for t <= clear, 0 for t >= lost, linear between. noise: 0 is off (with
    mix=1). mix: share of the version with the mean and deviation of y restored. apply_to: "both" branches with
    independent noise, as the known implementations do (the paper's wording on that was not seen), or "cond".
    seed: another draw. A row's noise follows the picture, not the batch. Whole-number class labels are refused.
    """

    noise: float = 0.25
    clear: float = 0.6
    lost: float = 0.9
    mix: float = 1.0
    apply_to: str = "both"
    seed: int = 0

    order: ClassVar[int] = 60
    passes: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.apply_to not in ("both", "cond"):
            raise UsageError(f"cads apply_to {self.apply_to!r} is unknown; use both or cond")
        if not self.clear <= self.lost:
            raise UsageError(f"cads clear={self.clear} lies above lost={self.lost}; swap them")

    def kept(self, t: float) -> float:
        """k(t): how much of the conditioning is left."""
        if t <= self.clear:
            return 1.0
        return 0.0 if t >= self.lost else (self.lost - t) / (self.lost - self.clear)

    def guide(self, ctx: Context) -> Guide:
        kept = self.kept(1 - ctx.progress)
        if self.noise == 0 and self.mix == 1:
            return (yield from self.rule.guide(ctx))
        who = identities(ctx, self)  # at each step, for only the first one can tell
        ctx.log(kept_condition=kept)
        if kept == 1:
            return (yield from self.rule.guide(ctx))

        def edited(ask: Ask) -> Ask:
            if ask.edit is not None or (self.apply_to == "cond" and ask.branch == "uncond"):
                return ask
            purpose = (self.seed, "cads", ask.branch, ctx.step)
            return replace(ask, edit=Annealed(who, purpose, kept, self.noise, self.mix))

        return (yield from changed(self.rule.guide(ctx), edited))


@dataclass(frozen=True)
class Annealed(NoisyEdit):
    """The conditioning with noise on it."""

    kept: float
    noise: float
    mix: float
    called: ClassVar[str] = "cads"

    def changed(self, y: Tensor, noise: Tensor, name: str) -> Tensor:
        noisy = math.sqrt(self.kept) * y + self.noise * math.sqrt(1 - self.kept) * noise
        if self.mix == 0:
            return noisy
        (mean, std), (was, wide) = moments(noisy), moments(y)
        restored = torch.where(std > 0, (noisy - mean) / torch.where(std > 0, std, 1.0) * wide + was, y)
        return restored if self.mix == 1 else self.mix * restored + (1 - self.mix) * noisy
