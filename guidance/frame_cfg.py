"""CFG whose scale rises from frame to frame, as in Stable Video Diffusion: Blattmann et al. 2023, arXiv 2311.15127."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .rule import Ask, Context, Guide, Rule


@dataclass(frozen=True)
class FrameCFG(Rule):
    """uncond + s_f (cond - uncond), in any space, with s_f on a line from `first` in the first frame to `scale` in the
    last one: frames near the given picture need less guidance.

    scale: of the last frame; 1 in both is off. first: of the first frame; equal to `scale` it is CFG. Latents whose
    frames are not known (pictures, and pipelines whose row does not say where frames lie) have `scale` everywhere.
    """

    scale: float = 3.0
    first: float = 1.0

    passes: ClassVar[int] = 3
    needs: ClassVar[tuple[str, ...]] = ("cond", "uncond")

    def guide(self, ctx: Context) -> Guide:
        ctx.log(scale=self.scale)
        if self.scale == 1 and (self.first == 1 or ctx.frames is None):
            (cond,) = yield (Ask(),)
            return cond
        cond, uncond = yield Ask(), Ask("uncond")
        return cond.like(uncond.native + self._scales(ctx) * (cond.native - uncond.native))

    def _scales(self, ctx: Context) -> Tensor | float:
        """s_f, shaped to broadcast against x."""
        if ctx.frames is None:
            return self.scale
        count = ctx.x.shape[ctx.frames]
        line = torch.linspace(self.first, self.scale, count, dtype=ctx.x.dtype, device=ctx.x.device)
        return line.reshape([count if axis == ctx.frames else 1 for axis in range(ctx.x.dim())])
