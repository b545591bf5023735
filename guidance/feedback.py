"""FBG, feedback guidance: Koulischer et al. 2025, arXiv 2506.06085. The scale follows an estimate of log p(c | x)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import UsageError
from ..samplers.grids import make_grid
from ..samplers.prediction import Prediction
from ..samplers.schedule import Level, NoiseSchedule
from .cfg import CFG
from .reduce import dot
from .rule import Ask, Context, Guide, Rule
from .scale import Scale

_HIGHEST = 3.0  # of the log posterior


@dataclass(frozen=True)
class FeedbackGuidance(Rule):
    """CFG with the scale e^L / (e^L - (1 - prior)) of each row, L an estimate of log p(c | x), 0 at the start.

    L falls by |offset| a step, and each step taken tells by how much the conditional model explains it better:
    L <- L - temperature / (2 s~^2) (|x' - mean_c|^2 - |x' - mean_n|^2) + offset, in x / alpha and rho (the paper's
    variance-exploding form), with the posterior means and variance of the step.
    prior: pi, 1 is off; the first scale is 1 / prior. start, peak: t_0 and t_1, from which offset and temperature
    follow unless they are given. most: largest scale. scale: of an ordinary CFG added to it, 1 is none.
    Derived for stochastic samplers of one evaluation a step; later stages of others see the L of the step before.
    """

    prior: float = 0.95
    start: float = 0.5
    peak: float = 0.4
    most: float = 10.0
    scale: Scale = 1.0
    temperature: float | None = None
    offset: float | None = None

    passes: ClassVar[int] = 16
    needs: ClassVar[tuple[str, ...]] = ("cond", "uncond")

    def __post_init__(self) -> None:
        if not 0 < self.prior <= 1:
            raise UsageError(f"feedback prior={self.prior} lies outside (0, 1]; the paper has 0.85 to 0.999")
        if not self.most > 1:
            raise UsageError(f"feedback most={self.most} must be above 1, the scale of no guidance")
        if not 0 <= self.start < 1:
            raise UsageError(f"feedback start={self.start} lies outside [0, 1); the paper has 0.5 to 0.75")

    def guide(self, ctx: Context) -> Guide:
        if self.prior == 1:
            return (yield from CFG(self.scale).guide(ctx))
        log_ratio = self._log_ratio(ctx)
        scale = torch.exp(log_ratio) / (torch.exp(log_ratio) - (1 - self.prior))
        whole = scale + (ctx.column(self.scale, like=scale) - 1)
        ctx.log(scale=whole, log_posterior=log_ratio)
        cond, uncond = yield Ask(), Ask("uncond")
        self._remember(ctx, log_ratio, cond, uncond)
        difference = cond.native - uncond.native
        return cond.like(uncond.native + ctx.column(whole.to(difference.dtype)) * difference)

    def _log_ratio(self, ctx: Context) -> Tensor:
        """L at this step: the last one, and what the step since then has told."""
        lowest = math.log((1 - self.prior) * self._most / (self._most - 1))
        before = ctx.scoped(0).recall(self)
        if before is None:
            return torch.full((len(ctx.x),), max(0.0, lowest), dtype=torch.float64, device=ctx.x.device)
        if ctx.stage > 0:
            return before
        middle, apart = ctx.scoped(1).recall(self), ctx.scoped(2).recall(self)
        told = dot(torch.add(ctx.x / ctx.level.alpha, middle, alpha=-1.0), apart)
        return (before + told + self._offset(ctx)).clamp(lowest, _HIGHEST)

    def _remember(self, ctx: Context, log_ratio: Tensor, cond: Prediction, uncond: Prediction) -> None:
        """|x' - c|^2 - |x' - n|^2 = -2 <x' - (c + n) / 2, c - n>: the middle of the two means, and their weighted
        difference, wait for x'. A step that ends at clean data tells nothing."""
        start, goal = ctx.start, ctx.goal
        share = (goal.sigma / (goal.alpha * start.sigma)) ** 2 * start.alpha  # (s'/s)^2 / alpha, finite at alpha = 0
        left = 1 - share * start.alpha
        variance = posterior_variance(start, goal)
        weight = self._temperature(ctx) * left / variance if variance > 0 else 0.0
        middle = torch.add(ctx.x * share, cond.denoised + uncond.denoised, alpha=left / 2)
        ctx.scoped(0).keep(self, log_ratio)
        ctx.scoped(1).keep(self, middle)
        ctx.scoped(2).keep(self, (cond.denoised - uncond.denoised) * weight)

    @property
    def _most(self) -> float:
        """The largest scale of the feedback alone, beside the ordinary one."""
        added = max(self.scale) if isinstance(self.scale, tuple) else self.scale
        return max(self.most - (added - 1), 1 + 1e-6)

    def _offset(self, ctx: Context) -> float:
        if self.offset is not None:
            return self.offset
        return math.log((1 - self.prior) * 3 / 2) / ((1 - self.start) * ctx.steps)

    def _temperature(self, ctx: Context) -> float:
        """|2 s~^2 offset / 10|, with the variance of the step at the share `peak` of a Karras grid of as many steps: a
        rule does not see the whole of its own grid."""
        if self.temperature is not None:
            return self.temperature
        return abs(2 * _typical_variance(ctx.schedule, ctx.steps, self.peak) * self._offset(ctx) / 10)


@lru_cache(maxsize=64)
def _typical_variance(schedule: NoiseSchedule, steps: int, share: float) -> float:
    """s~^2 at this share of a Karras grid, counted from its clean end, interpolated linearly."""
    levels = make_grid("karras", schedule, steps)
    values = [posterior_variance(a, b) for a, b in zip(levels, levels[1:], strict=False)][::-1]
    place = min(max(share, 0.0), 1.0) * (steps - 1)
    low = min(math.floor(place), max(steps - 2, 0))
    high = min(low + 1, steps - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def posterior_variance(start: Level, goal: Level) -> float:
    """s~^2 = (s^2 - s'^2) s'^2 / s^2 of a step in rho; s'^2 when it starts at pure noise."""
    ratio = goal.sigma * start.alpha / (goal.alpha * start.sigma)
    return (1 - ratio**2) * goal.rho**2
