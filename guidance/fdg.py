"""Frequency-decoupled guidance: Sadat et al. 2025, arXiv 2506.19713, Algorithm 2. Home space: denoised predictions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import UsageError
from .apg import projected
from .rule import Ask, Context, Guide, Rule
from .scale import Scale, is_off, selected
from .spatial import as_given, as_pictures, from_pyramid, pyramid


@dataclass(frozen=True)
class FDG(Rule):
    """CFG in each band of a Laplacian pyramid: high frequencies bear a higher scale than low ones.

    scale: of the finest band; low_scale: of the coarsest one; both 1 is off. levels: number of bands, those between
    have scales in between. parallel: weight of the part of each band's difference that is parallel to the conditional
    band, 1 is all of it. Equal scales with parallel=1 are CFG.
    """

    scale: Scale = 7.0
    low_scale: Scale = 3.0
    levels: int = 2
    parallel: float = 1.0

    passes: ClassVar[int] = 22
    needs: ClassVar[tuple[str, ...]] = ("cond", "uncond")
    spatial: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise UsageError(f"fdg levels={self.levels} must be at least 1; the paper has 2")

    def guide(self, ctx: Context) -> Guide:
        ctx.log(scale=self.scale, low_scale=self.low_scale)
        if is_off(self.scale) and is_off(self.low_scale):
            (cond,) = yield (Ask(),)
            return cond
        high, low = self._weights(self.scale, ctx), self._weights(self.low_scale, ctx)
        on = (high != 0) | (low != 0) if isinstance(self.scale, tuple) or isinstance(self.low_scale, tuple) else None
        cond, uncond = yield Ask(), Ask("uncond", rows=on)
        target = cond.denoised
        bands = pyramid(as_pictures(target - uncond.denoised, ctx, "fdg"), self.levels)
        towards = pyramid(as_pictures(target, ctx, "fdg"), self.levels) if self.parallel != 1 else bands
        flat = replace(ctx, x=as_pictures(ctx.x, ctx, "fdg"), packing=None)
        for i, band in enumerate(bands):
            share = i / (len(bands) - 1) if len(bands) > 1 else 0.0
            weight = flat.column(torch.lerp(high, low, share).to(band.dtype))
            bands[i] = weight * projected(band, towards[i], self.parallel)
        return selected(cond.with_denoised(target + as_given(from_pyramid(bands), ctx)), on, cond)

    def _weights(self, scale: Scale, ctx: Context) -> Tensor:
        """scale - 1, (B,)."""
        given = ctx.column(scale)
        wide = given if isinstance(given, Tensor) else torch.full((len(ctx.x),), given, dtype=ctx.x.dtype)
        return (wide.reshape(-1) - 1).to(ctx.x.device)
