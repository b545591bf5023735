"""Rectified-CFG++: Saini et al. 2025, arXiv 2510.07631. For flow models; looks ahead along the conditional flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import UsageError
from .identity import identities, row_noise
from .rule import Ask, Context, Guide, Point, Rule
from .velocity import refuse_other_than_flow, velocity, with_velocity

_JITTER = 0.005  # of the released pipeline


@dataclass(frozen=True)
class RectifiedCFGPP(Rule):
    """u_c + a(t) (u~_c - u~_n): both branches of the correction are evaluated half a step ahead, at x + dt/2 u_c.

    weight: 0 is off; a(t) = weight (1 - t)^growth, t = 1 at noise. growth: 0 is constant (the paper's value was not
    seen: experimental). mode: "paper", or "released", the authors' pipeline, which looks a whole step ahead, adds noise
    of 0.005 there, keeps a(t) = weight and tells the network the time of the step's start.
    Three evaluations a step. Made for Euler steps: the look-ahead is from `level` to the step's end, so the last stage
    of a longer solver is CFG with the scale 1 + a.
    """

    weight: float = 4.5
    growth: float = 0.0
    mode: str = "paper"

    passes: ClassVar[int] = 4
    needs: ClassVar[tuple[str, ...]] = ("cond", "uncond")

    def __post_init__(self) -> None:
        if self.mode not in ("paper", "released"):
            raise UsageError(f"rectified-cfg++ mode {self.mode!r} is unknown; use paper or released")

    def guide(self, ctx: Context) -> Guide:
        (cond,) = yield (Ask(),)
        released = self.mode == "released"
        weight = self.weight if released else self.weight * (1 - ctx.start.sigma) ** self.growth
        ctx.log(weight=weight)
        if weight == 0:
            return cond
        refuse_other_than_flow(ctx, "rectified-cfg++")
        point = self._ahead(ctx, velocity(cond, ctx))
        ahead, null = yield Ask(at=point), Ask("uncond", at=point)
        change = velocity(ahead, ctx) - velocity(null, ctx)
        return with_velocity(cond, velocity(cond, ctx) + weight * change, ctx)

    def _ahead(self, ctx: Context, flow: torch.Tensor) -> Point | None:
        """Where the correction is evaluated; None: here."""
        step = ctx.goal.sigma - ctx.level.sigma
        if step == 0:
            return None
        if self.mode == "paper":
            level = ctx.schedule.level(ctx.level.sigma + step / 2)
            return Point(torch.add(ctx.x, flow, alpha=step / 2), level)
        moved = torch.add(ctx.x, flow, alpha=step)
        noise = row_noise(identities(ctx, self), moved, "rectified-cfg++", ctx.step)
        return Point(torch.add(moved, noise, alpha=_JITTER), ctx.level)
