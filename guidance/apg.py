"""Adaptive projected guidance: Sadat et al. 2024, arXiv 2410.02416, Algorithm 1. Home space: denoised predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import UsageError
from ..samplers.prediction import Prediction
from .reduce import Axes, along, coarse_dot, norm, safe_ratio
from .rule import Context, Guide, Rule
from .scale import Scale, both, minus_one, selected


@dataclass(frozen=True)
class APG(Rule):
    """Keep the part of the guidance difference that is orthogonal to the conditional prediction.

    scale: 1 is off. eta: weight of the parallel part (1 is plain CFG, 0 the paper's choice; it mostly saturates).
    norm_threshold: cap on the norm of the difference, 0 for none; it grows with sqrt(C H W) and with the latents'
    scaling, so it belongs to a model and a size. momentum: weight of the previous steps' average, below 0 in the
    paper, 0 for none; without a cap a negative one is unstable at high scales (`calibrate_apg` measures a cap). With
    eta=1, norm_threshold=0, momentum=0 it is CFG.
    relative_threshold: in place of norm_threshold, the cap in units of the square root of the number of entries, which
    bears another size. axes: over which the norms and the projection are taken, counted as in the latents of the
    pipeline, the batch being 0; () is all of a sample, (1,) the time of audio latents (B, T, C), (2, 3) each channel of
    a picture by itself.
    """

    scale: Scale = 5.0
    eta: float = 0.0
    norm_threshold: float = 0.0
    momentum: float = -0.5
    relative_threshold: float = 0.0
    axes: Axes = ()

    passes: ClassVar[int] = 7
    needs: ClassVar[tuple[str, ...]] = ("cond", "uncond")

    def __post_init__(self) -> None:
        if self.norm_threshold > 0 and self.relative_threshold > 0:
            raise UsageError(
                f"apg has two caps, norm_threshold={self.norm_threshold:g} (a model may bring its own) and "
                f"relative_threshold={self.relative_threshold:g}; write norm_threshold=0 or relative_threshold=0"
            )
        if len(set(self.axes)) < len(self.axes) or not all(isinstance(a, int) and a > 0 for a in self.axes):
            raise UsageError(
                f"apg:axes={list(self.axes)} are not axes of a sample; count from 1, each once, as in [2,3]"
            )

    def guide(self, ctx: Context) -> Guide:
        ctx.log(scale=self.scale)
        cond, uncond, on = yield from both(ctx, self.scale)
        if uncond is None:
            return cond
        _, slope = cond.kind.denoised(cond.level)  # of denoised in native, so that x drops out of the difference
        if slope == 0:
            return cond
        difference = (cond.native - uncond.native).mul_(slope)  # of the denoised predictions
        if self.momentum:
            before = ctx.recall(self)
            if before is not None:
                difference.add_(before, alpha=self.momentum)
            ctx.keep(self, difference)
        size = ctx.column(minus_one(self.scale)) / slope * capped(difference, self._cap(difference), self.axes)
        update = projected(difference, clean_direction(cond), self.eta, self.axes)
        return selected(cond.like(torch.addcmul(cond.native, update, size)), on, cond)

    def _cap(self, difference: Tensor) -> float:
        """The longest that the difference may be, 0 for no limit."""
        if self.axes and max(self.axes) >= difference.dim():
            raise UsageError(f"apg:axes={list(self.axes)} are too many for latents {tuple(difference.shape)}")
        if self.relative_threshold <= 0:
            return self.norm_threshold
        axes = self.axes or range(1, difference.dim())
        return self.relative_threshold * math.sqrt(math.prod(difference.shape[axis] for axis in axes))


def clean_direction(p: Prediction) -> Tensor:
    """The clean estimate (B, ...) but for a factor, which a projection onto it does not see: one operation, not two."""
    of_x, of_native = p.kind.denoised(p.level)
    return p.native if of_x == 0 else torch.add(p.x, p.native, alpha=of_native / of_x)


def capped(difference: Tensor, cap: float, axes: Axes = ()) -> Tensor:
    """min(1, cap / |g|) of each row, shaped to broadcast against g (B, ...); 1 where there is no cap."""
    if cap <= 0:
        return difference.new_ones(())
    return (cap / along(axes, norm, difference).clamp(min=cap)).to(difference.dtype)


def projected(difference: Tensor, target: Tensor, eta: float, axes: Axes = ()) -> Tensor:
    """g - (1 - eta) g_parallel, with g_parallel the projection of g on the target; all (B, ...). Linear in g."""
    if eta == 1:
        return difference
    share = safe_ratio(along(axes, coarse_dot, difference, target), along(axes, norm, target).square())
    return torch.addcmul(difference, share.to(difference.dtype), target, value=eta - 1.0)
