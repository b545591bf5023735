"""CFG-MP and MP+, manifold projection: Cai et al. 2026, arXiv 2601.21892. For flow models. Experimental."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import UsageError
from .reduce import dot
from .rule import Ask, Asks, Context, Guide, Point, Rule
from .scale import Scale, is_off
from .velocity import refuse_other_than_flow, velocity


@dataclass(frozen=True)
class CFGMP(Rule):
    """Before each noisy step, move x back and forth between the conditional and the unconditional flow; then CFG there.

    One iteration, with h half the step and both evaluations at the step's time: z + h u_c, then - h u_n of that, while
    t >= `high`; else z - h u_n, then + h u_c of that. scale: of the CFG. iterations: 0 is CFG. low: at and below this
    time there are none. Each iteration costs two evaluations. Independent tests found no gain at equal evaluations:
    experimental.
    mixing: "anderson" is MP+, which mixes each iterate with the one before so that the residual falls fastest; ridge
    holds that mix small (its scale is not confirmed; the released tolerance is left out, it would read the device).
    place: "before" the step, the released order, or "after", another reading of the paper: z - h u_n, then + h u_c of
    that, at the time where the step ended and with its h, at every time above `low` (the sign is not confirmed).
    """

    scale: Scale = 4.0
    iterations: int = 3
    high: float = 0.95
    low: float = 0.6
    mixing: str = "none"
    ridge: float = 1e-4
    place: str = "before"

    passes: ClassVar[int] = 15  # 2 an iteration, 6 with mixing
    needs: ClassVar[tuple[str, ...]] = ("cond", "uncond")

    def __post_init__(self) -> None:
        if self.mixing not in ("none", "anderson"):
            raise UsageError(f"cfg-mp mixing {self.mixing!r} is unknown; use none or anderson (MP+)")
        if self.place not in ("before", "after"):
            raise UsageError(f"cfg-mp place {self.place!r} is unknown; use before (the released order) or after")

    def guide(self, ctx: Context) -> Guide:
        ctx.log(scale=self.scale)
        point: Point | None = None
        if self.iterations and ctx.stage == 0:
            refuse_other_than_flow(ctx, "cfg-mp")
            half = self._half(ctx)
            if half is not None and ctx.start.sigma > self.low:
                point = yield from self._projected(ctx, half)
        if is_off(self.scale):
            (cond,) = yield (Ask(at=point),)
            return cond
        cond, uncond = yield Ask(at=point), Ask("uncond", at=point)
        return cond.like(uncond.native + ctx.column(self.scale) * (cond.native - uncond.native))

    def _half(self, ctx: Context) -> Any:
        """h, below 0: of the step to come, or of the last one."""
        half = (ctx.goal.sigma - ctx.start.sigma) / 2
        if self.place == "before":
            return half
        before = ctx.recall(self)
        ctx.keep(self, torch.full((len(ctx.x),), half, dtype=ctx.x.dtype, device=ctx.x.device))
        return None if before is None else ctx.column(before)

    def _projected(self, ctx: Context, half: Any) -> Generator[Asks, Any, Point | None]:
        """x after the iterations."""
        backward = self.place == "before" and ctx.start.sigma >= self.high
        rounds = (("cond", half), ("uncond", -half)) if backward else (("uncond", -half), ("cond", half))
        point: Point | None = None
        last: tuple[Tensor, Tensor] | None = None  # image and residual of the iterate before
        for _ in range(self.iterations):
            z = ctx.x if point is None else point.x
            for branch, step in rounds:
                (flow,) = yield (Ask(branch, at=point),)
                point = Point(flow.x + step * velocity(flow, ctx), ctx.level)
            if self.mixing == "anderson":
                assert point is not None
                image, residual = point.x, point.x - z
                if last is not None:
                    change = residual - last[1]
                    share = dot(change, residual) / (dot(change, change) + self.ridge)
                    point = Point(image - ctx.column(share.to(z.dtype)) * (image - last[0]), ctx.level)
                last = image, residual
        return point
