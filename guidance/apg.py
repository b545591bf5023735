"""Adaptive projected guidance: Sadat et al. 2024, arXiv 2410.02416, Algorithm 1. Home space: denoised predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..samplers.prediction import Prediction
from .reduce import coarse_dot, norm, safe_ratio
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

    passes: ClassVar[int] = 7
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
        difference = (cond.native - uncond.native).mul_(slope)  # of the denoised predictions
        if self.momentum:
            before = ctx.recall(self)
            if before is not None:
                difference.add_(before, alpha=self.momentum)
            ctx.keep(self, difference)
        size = ctx.column(minus_one(self.scale)) / slope * capped(difference, self.norm_threshold, ctx)
        update = projected(difference, clean_direction(cond), self.eta, ctx)
        return selected(cond.like(torch.addcmul(cond.native, update, size)), on, cond)


def clean_direction(p: Prediction) -> Tensor:
    """The clean estimate (B, ...) but for a factor, which a projection onto it does not see: one operation, not two."""
    of_x, of_native = p.kind.denoised(p.level)
    return p.native if of_x == 0 else torch.add(p.x, p.native, alpha=of_native / of_x)


def capped(difference: Tensor, cap: float, ctx: Context) -> Tensor:
    """min(1, cap / |g|) of each row, shaped to broadcast against g (B, ...); 1 where there is no cap."""
    if cap <= 0:
        return difference.new_ones(())
    return ctx.column((cap / norm(difference).clamp(min=cap)).to(difference.dtype))


def projected(difference: Tensor, target: Tensor, eta: float, ctx: Context) -> Tensor:
    """g - (1 - eta) g_parallel, with g_parallel the projection of g on the target; all (B, ...). Linear in g."""
    if eta == 1:
        return difference
    along = safe_ratio(coarse_dot(difference, target), norm(target).square()).to(difference.dtype)
    return torch.addcmul(difference, ctx.column(along), target, value=eta - 1.0)
