"""CFG-Zero*: Fan et al. 2025, arXiv 2503.18886. For flow models. Home space: the velocity.

The scale k is `optimized_scale` in the authors' `models/sd/sd3_pipeline.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..samplers.prediction import FLOW_PREDICTION, Prediction
from .reduce import dot, safe_ratio
from .rule import Context, Guide, Rule
from .scale import Scale, both, selected
from .velocity import refuse_other_than_flow, velocity, with_velocity


@dataclass(frozen=True)
class CFGZero(Rule):
    """k uncond + scale (cond - k uncond) on velocities, k = <cond, uncond> / |uncond|^2 of each row; and the
    first steps of the run stand still.

    scale: 1 is off. zero_steps: so many first steps have velocity zero and cost no evaluation, at every scale; 0 is
    none. least_steps: runs of fewer steps have no zero steps, which would delete too much of them. k = 1 is CFG.
    Only a flow model can stand still, so others are refused unless zero_steps=0; k is then taken on the noise, which is
    the velocity of x / alpha in rho.
    """

    scale: Scale = 5.0
    zero_steps: int = 1
    least_steps: int = 20

    passes: ClassVar[int] = 8
    needs: ClassVar[tuple[str, ...]] = ("cond", "uncond")

    def guide(self, ctx: Context) -> Guide:
        if ctx.step < self.zero_steps and ctx.steps >= self.least_steps:
            refuse_other_than_flow(ctx, "cfg-zero with zero_steps above 0")
            ctx.log(scale=0.0)
            return Prediction(ctx.x, ctx.level, torch.zeros_like(ctx.x), FLOW_PREDICTION)
        ctx.log(scale=self.scale)
        cond, uncond, on = yield from both(ctx, self.scale)
        if uncond is None:
            return cond
        u, v = velocity(cond, ctx), velocity(uncond, ctx)
        share = safe_ratio(dot(u, v), dot(v, v))
        ctx.log(optimised=share)
        base = v * ctx.column(share.to(v.dtype))
        return selected(with_velocity(cond, base + ctx.column(self.scale) * (u - base), ctx), on, cond)
