"""Reflection at the walls of the data box: Xie et al. 2024, arXiv 2405.16577, the part that acts when sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.schedule import Level
from ..rule import Context, Guide, Modifier

WHATS = ("clip", "fold", "fold-x")


@dataclass(frozen=True)
class Reflect(Modifier):
    """Keep within the box that data lives in, low to high: what leaves it is folded back at the wall, 1.2 -> 0.8.

    what: "fold" the clean estimate, "clip" it instead, or "fold-x", x itself after each step (the paper's, for models
    whose noise was folded as well: with Gaussian noise x leaves the box by right, so use a small `start`).
    low, high: an infinite box is off. Pixel models have -1 to 1; latents need their own, wide enough for their tails.
    start: it acts where t = rho / (1 + rho) is at most this, 1 always.
    """

    low: float = -math.inf
    high: float = math.inf
    what: str = "fold"
    start: float = 1.0

    order: ClassVar[int] = 23
    passes: ClassVar[int] = 12

    def __post_init__(self) -> None:
        if self.what not in WHATS:
            raise UsageError(f"reflect what {self.what!r} is unknown; use clip, fold or fold-x")
        if not self.low < self.high:
            raise UsageError(f"reflect low={self.low} must be below high={self.high}")
        if math.isinf(self.low) != math.isinf(self.high):
            raise UsageError("reflect needs both walls: low=-1,high=1 for pixel models")

    @property
    def moves(self) -> bool:
        return self.rule.moves or (self.what == "fold-x" and math.isfinite(self.high))

    def acts(self, level: Level) -> bool:
        return math.isfinite(self.high) and level.sigma / (level.alpha + level.sigma) <= self.start

    def guide(self, ctx: Context) -> Guide:
        guided = yield from self.rule.guide(ctx)
        if self.what == "fold-x" or not self.acts(ctx.start):
            return guided
        inside = folded if self.what == "fold" else torch.clamp
        return guided.with_denoised(inside(guided.denoised, self.low, self.high))

    def after(self, ctx: Context, x: Tensor) -> Tensor:
        x = self.rule.after(ctx, x)
        return folded(x, self.low, self.high) if self.what == "fold-x" and self.acts(ctx.level) else x


def folded(x: Tensor, low: float, high: float) -> Tensor:
    """The triangle wave with period 2 (high - low) that is x inside of the box."""
    width = high - low
    away = torch.remainder(x - low, 2 * width)
    return torch.where(x.clamp(low, high) == x, x, high - (away - width).abs())
