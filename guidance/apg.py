"""Adaptive projected guidance: Sadat et al. 2024, arXiv 2410.02416, Algorithm 1. Home space: denoised predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .reduce import dot, norm, safe_ratio
from .rule import Ask, Context, Guide, Rule
from .scale import Scale, is_off, minus_one


@dataclass(frozen=True)
class APG(Rule):
    """Keep the part of the guidance difference that is orthogonal to the conditional prediction.

    scale: 1 is off. eta: weight of the parallel part (1 is plain CFG, 0 the paper's choice; it mostly saturates).
    norm_threshold: cap on the norm of the difference, 0 for none; it grows with sqrt(C H W) and with the latents'
    scaling, so it belongs to a model and a size. momentum: weight of the previous steps' average, below 0 in the
    paper, 0 for none. With eta=1, norm_threshold=0, momentum=0 it is CFG.
    """

    scale: Scale = 5.0
    eta: float = 0.0
    norm_threshold: float = 0.0
    momentum: float = -0.5

    passes: ClassVar[int] = 9
    needs: ClassVar[tuple[str, ...]] = ("cond", "uncond")

    def guide(self, ctx: Context) -> Guide:
        ctx.log(scale=self.scale)
        if is_off(self.scale):
            (cond,) = yield (Ask(),)
            return cond
        cond, uncond = yield Ask(), Ask("uncond")
        difference = cond.denoised - uncond.denoised
        if self.momentum:
            before = ctx.recall(self)
            if before is not None:
                difference = torch.add(difference, before, alpha=self.momentum)
            ctx.keep(self, difference)
        update = projected(difference, cond.denoised, self.eta, self.norm_threshold, ctx)
        return cond.with_denoised(cond.denoised + ctx.column(minus_one(self.scale)) * update)


def projected(difference: Tensor, target: Tensor, eta: float, cap: float, ctx: Context) -> Tensor:
    """min(1, cap / |g|) (g - (1 - eta) g_parallel), g_parallel the projection of g on the target; all (B, ...)."""
    shrink = 1.0
    if cap > 0:
        length = norm(difference)
        shrink = torch.clamp(cap / length.clamp(min=cap), max=1.0).to(difference.dtype)
        difference = difference * ctx.column(shrink)
    along = safe_ratio(dot(difference, target), dot(target, target)).to(difference.dtype)
    return torch.addcmul(difference, ctx.column(along), target, value=eta - 1.0)
