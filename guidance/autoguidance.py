"""Autoguidance: Karras et al. 2024, arXiv 2406.02507, eq. 5. Guide a model with a bad version of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .rule import Ask, Context, Guide, Rule
from .scale import Scale, guided_rows, is_off, selected


@dataclass(frozen=True)
class Autoguidance(Rule):
    """weak + scale (cond - weak), with the same condition for both networks.

    scale: 1 is off. Needs a second network called "weak": smaller or less trained, of the same latents; its failures
    must point in the same direction as the strong one's. Works between networks that predict different quantities.
    """

    scale: Scale = 2.0

    passes: ClassVar[int] = 3
    needs: ClassVar[tuple[str, ...]] = ("cond", "weak")

    def guide(self, ctx: Context) -> Guide:
        ctx.log(scale=self.scale)
        if is_off(self.scale):
            (cond,) = yield (Ask(),)
            return cond
        on = guided_rows(self.scale, ctx.x)
        cond, weak = yield Ask(), Ask("weak", rows=on)
        if weak.kind is not cond.kind:
            weak = cond.with_denoised(weak.denoised)
        return selected(cond.like(weak.native + ctx.column(self.scale) * (cond.native - weak.native)), on, cond)
