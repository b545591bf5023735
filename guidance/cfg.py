"""Classifier-free guidance: Ho & Salimans 2022, arXiv 2207.12598, eq. 6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .rule import Context, Guide, Rule
from .scale import Scale, both, selected


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
        cond, uncond, on = yield from both(ctx, self.scale)
        if uncond is None:
            return cond
        return selected(cond.like(uncond.native + ctx.column(self.scale) * (cond.native - uncond.native)), on, cond)
