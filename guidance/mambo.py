"""MAMBO-G, magnitude-aware guidance: Zhu et al. 2025, arXiv 2508.03442. Space: what the network predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .reduce import norm
from .rule import Context, Guide, Rule
from .scale import Scale, both, minus_one, selected


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
        cond, uncond, on = yield from both(ctx, self.scale)
        if uncond is None:
            ctx.log(scale=self.scale)
            return cond
        difference = cond.native - uncond.native
        size, base = norm(difference), norm(uncond.native)
        ratio = torch.where(base > 0, size / torch.where(base > 0, base, 1.0), torch.inf)
        damp = torch.exp(-self.damping * ratio) if self.damping else torch.ones_like(ratio)
        most = minus_one(self.scale)
        scale = 1 + damp * (most if isinstance(most, float | int) else damp.new_tensor(most))
        ctx.log(scale=scale)
        return selected(cond.like(uncond.native + ctx.column(scale.to(difference.dtype)) * difference), on, cond)
