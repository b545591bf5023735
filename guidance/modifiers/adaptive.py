"""Adaptive guidance: Castillo et al. 2023, arXiv 2312.12487. Stop guiding a row once its branches agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import UsageError
from ..reduce import cosine
from ..rule import Ask, Context, Guide, Modifier, changed, narrowed


@dataclass(frozen=True)
class Adaptive(Modifier):
    """Each row drops its second branch for the rest of the run after the step on which the cosine of the conditional
    and unconditional predictions reaches `threshold`; dropped rows are not evaluated.

    threshold: above 1 never drops, -1 drops after the first step. The right value belongs to a model: measure it with
    `pilotage.guidance.calibrate_adaptive`. space: "noise" (the paper's) or "denoised", where the cosine is taken.
    """

    threshold: float = 0.991
    space: str = "noise"

    order: ClassVar[int] = 30
    passes: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.space not in ("noise", "denoised"):
            raise UsageError(f"adaptive space {self.space!r} is unknown; use noise or denoised")

    def guide(self, ctx: Context) -> Guide:
        on = ctx.recall(self, ctx.every_row)
        if ctx.rows is not None:
            on = on & ctx.rows
        if not bool(on.any()):
            ctx.keep(self, on)
            ctx.log(guided_rows=on)
            (cond,) = yield (Ask(),)
            return cond
        inner = self.rule.guide(ctx.narrowed(on))
        guided = yield from changed(inner, lambda ask: ask if ask == Ask() else narrowed(ask, on))
        cond, uncond = yield Ask(), Ask("uncond", rows=on)  # both are known already, so this costs nothing
        agreement = cosine(getattr(cond, self.space), getattr(uncond, self.space))
        ctx.keep(self, on & (agreement < self.threshold))
        ctx.log(guided_rows=on, agreement=agreement)
        return guided.where(on, cond)
