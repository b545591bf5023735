"""MAMBO-G, magnitude-aware guidance: Zhu et al. 2025, arXiv 2508.03442. Space: what the network predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .reduce import norm
from .rule import Ask, Context, Guide, Rule
from .scale import Scale, guided_rows, is_off, minus_one, selected


@dataclass(frozen=True)
class MamboG(Rule):
    """CFG with the scale of each row damped where the difference is large: 1 + (scale - 1) exp(-damping |c - n| / |n|).

    scale: the largest, 1 is off. damping: 0 is CFG. Meant for velocity models; the ratio depends on what the network
    predicts.
    """

    scale: Scale = 10.0
    damping: float = 8.0

    passes: ClassVar[int] = 3
    needs: ClassVar[tuple[str, ...]] = ("cond", "uncond")

    def guide(self, ctx: Context) -> Guide:
        if is_off(self.scale):
            ctx.log(scale=self.scale)
            (cond,) = yield (Ask(),)
            return cond
        on = guided_rows(self.scale, ctx.x)
        cond, uncond = yield Ask(), Ask("uncond", rows=on)
        difference = cond.native - uncond.native
        size, base = norm(difference), norm(uncond.native)
        ratio = torch.where(base > 0, size / torch.where(base > 0, base, 1.0), torch.inf)
        damp = torch.exp(-self.damping * ratio) if self.damping else torch.ones_like(ratio)
        most = minus_one(self.scale)
        scale = 1 + damp * (most if isinstance(most, float | int) else damp.new_tensor(most))
        ctx.log(scale=scale)
        return selected(cond.like(uncond.native + ctx.column(scale.to(difference.dtype)) * difference), on, cond)
