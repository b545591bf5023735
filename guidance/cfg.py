"""Classifier-free guidance: Ho & Salimans 2022, arXiv 2207.12598, eq. 6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .rule import Ask, Context, Guide, Rule
from .scale import Scale, guided_rows, is_off, selected


@dataclass(frozen=True)
class CFG(Rule):
    """uncond + scale (cond - uncond), in any space: the weights sum to one.

    scale: 1 is no guidance and evaluates one branch; 0 is the unconditional prediction. A tuple gives one a row.
    """

    scale: Scale = 7.5

    passes: ClassVar[int] = 3
    needs: ClassVar[tuple[str, ...]] = ("cond", "uncond")

    def guide(self, ctx: Context) -> Guide:
        ctx.log(scale=self.scale)
        if is_off(self.scale):
            (cond,) = yield (Ask(),)
            return cond
        on = guided_rows(self.scale, ctx.x)
        cond, uncond = yield Ask(), Ask("uncond", rows=on)
        return selected(cond.like(uncond.native + ctx.column(self.scale) * (cond.native - uncond.native)), on, cond)
