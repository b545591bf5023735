"""Adaptive projected guidance: Sadat et al. 2024, arXiv 2410.02416, Algorithm 1. Home space: denoised predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .reduce import dot, norm, safe_ratio
from .rule import Ask, Context, Guide, Rule
from .scale import Scale, guided_rows, is_off, minus_one, selected


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
        on = guided_rows(self.scale, ctx.x)
        cond, uncond = yield Ask(), Ask("uncond", rows=on)
        _, slope = cond.kind.denoised(cond.level)  # of denoised in native, so that x drops out of the difference
        if slope == 0:
            return cond
        difference = slope * (cond.native - uncond.native)  # of the denoised predictions
        if self.momentum:
            before = ctx.recall(self)
            if before is not None:
                difference = torch.add(difference, before, alpha=self.momentum)
            ctx.keep(self, difference)
        update = projected(difference, cond.denoised, self.eta, self.norm_threshold, ctx)
        return selected(cond.like(cond.native + ctx.column(minus_one(self.scale)) / slope * update), on, cond)


def projected(difference: Tensor, target: Tensor, eta: float, cap: float, ctx: Context) -> Tensor:
    """min(1, cap / |g|) (g - (1 - eta) g_parallel), g_parallel the projection of g on the target; all (B, ...)."""
    if cap > 0:
        shrink = cap / norm(difference).clamp(min=cap)
        difference = difference * ctx.column(shrink.to(difference.dtype))
    if eta == 1:
        return difference
    along = safe_ratio(dot(difference, target), norm(target).square()).to(difference.dtype)
    return torch.addcmul(difference, ctx.column(along), target, value=eta - 1.0)
