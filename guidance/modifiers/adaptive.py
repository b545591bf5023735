"""Adaptive guidance: Castillo et al. 2023, arXiv 2312.12487. Stop guiding a row once its branches agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...errors import UsageError
from ..reduce import cosine
from ..rule import Ask, Context, Guide, Modifier, changed, narrowed


@dataclass(frozen=True)
class Adaptive(Modifier):
    """Each row drops its second branch for the rest of the run after the step on which the cosine of the conditional
    and unconditional (or weak) predictions reaches `threshold`; dropped rows are not evaluated.

    threshold: above 1 never drops, -1 drops after the first step. The right value belongs to a model: measure it with
    `pilotage.guidance.calibrate_adaptive`. space: "noise" (the paper's) or "denoised", where the cosine is taken.
    on_crossing: "next" guides the step at which the threshold is reached, "same" no more; they cost the same.
    """

    threshold: float = 0.991
    space: str = "noise"
    on_crossing: str = "next"

    order: ClassVar[int] = 30
    passes: ClassVar[int] = 2
    selective: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.space not in ("noise", "denoised"):
            raise UsageError(f"adaptive space {self.space!r} is unknown; use noise or denoised")
        if self.on_crossing not in ("next", "same"):
            raise UsageError(f"adaptive on_crossing {self.on_crossing!r} is unknown; use next or same")

    def guide(self, ctx: Context) -> Guide:
        dropped = ctx.recall(self, torch.zeros_like(ctx.every_row))
        on = ~dropped if ctx.rows is None else ctx.rows & ~dropped
        guided_rows = int(on.sum())  # the one read from the device
        if guided_rows == 0:
            ctx.log(scale=1.0, guided_rows=on)
            (cond,) = yield (Ask(),)
            return cond
        rows = None if guided_rows == len(on) else on
        asked: set[Ask] = set()

        def narrow(ask: Ask) -> Ask:
            asked.add(ask)
            return ask if rows is None or ask == Ask() else narrowed(ask, rows)

        guided = yield from changed(self.rule.guide(ctx if rows is None else ctx.narrowed(rows)), narrow)
        rival, kept = Ask(self.rival, rows=rows), rows
        if {Ask(), rival} <= asked:  # else the rule rested at this step, and so does the decision
            cond, other = yield Ask(), rival  # both are known already, so this costs nothing
            agreement = cosine(getattr(cond, self.space), getattr(other, self.space))
            agree = agreement >= self.threshold
            ctx.keep(self, dropped | (on & agree))
            ctx.log(agreement=agreement)
            kept = on & ~agree if self.on_crossing == "same" else rows
        ctx.log(guided_rows=on if kept is None else kept)
        if kept is None:
            return guided
        (cond,) = yield (Ask(),)
        return guided.where(kept, cond)

    @property
    def rival(self) -> str:
        """The branch that is compared with the conditional one: "uncond", or what the rule has in its place."""
        others = [branch for branch in self.rule.needs if branch != "cond"]
        return others[0] if others and "uncond" not in others else "uncond"
