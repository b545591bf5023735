"""CFG-MP, manifold projection: Cai et al. 2026, arXiv 2601.21892, released order. For flow models. Experimental."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .rule import Ask, Context, Guide, Point, Rule
from .scale import Scale, is_off
from .velocity import refuse_other_than_flow, velocity


@dataclass(frozen=True)
class CFGMP(Rule):
    """Before each noisy step, move x back and forth between the conditional and the unconditional flow; then CFG there.

    One iteration, with h half the step and both evaluations at the step's time: z + h u_c, then - h u_n of that, while
    t >= `high`; else z - h u_n, then + h u_c of that. scale: of the CFG. iterations: 0 is CFG. low: at and below this
    time there are none. Each iteration costs two evaluations. Independent tests found no gain at equal evaluations:
    experimental; the Anderson mixing of MP+ is not here.
    """

    scale: Scale = 4.0
    iterations: int = 3
    high: float = 0.95
    low: float = 0.6

    passes: ClassVar[int] = 9  # 2 an iteration
    needs: ClassVar[tuple[str, ...]] = ("cond", "uncond")

    def guide(self, ctx: Context) -> Guide:
        ctx.log(scale=self.scale)
        point: Point | None = None
        if self.iterations and ctx.stage == 0:
            refuse_other_than_flow(ctx, "cfg-mp")
            half = (ctx.goal.sigma - ctx.start.sigma) / 2  # below 0
            first = "cond" if ctx.start.sigma >= self.high else "uncond"
            rounds = (("cond", half), ("uncond", -half)) if first == "cond" else (("uncond", -half), ("cond", half))
            for _ in range(self.iterations if ctx.start.sigma > self.low else 0):
                for branch, step in rounds:
                    (flow,) = yield (Ask(branch, at=point),)
                    point = Point(torch.add(flow.x, velocity(flow, ctx), alpha=step), ctx.level)
        if is_off(self.scale):
            (cond,) = yield (Ask(at=point),)
            return cond
        cond, uncond = yield Ask(at=point), Ask("uncond", at=point)
        return cond.like(uncond.native + ctx.column(self.scale) * (cond.native - uncond.native))
