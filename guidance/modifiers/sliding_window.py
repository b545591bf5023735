"""Sliding-window correction: Qiu et al. 2025 (MolJO), arXiv 2411.13280, carried over to Gaussian diffusion by us."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import UsageError
from ..identity import identities, row_noise
from ..rule import Context, Guide, Modifier


@dataclass(frozen=True)
class SlidingWindow(Modifier):
    """Instead of the sampler's step, start once more from x some steps ago, with the present guided clean estimate D:
    x' = alpha' D + sqrt(sigma'^2 - (noise s)^2) e + noise s n, e = (x_s - alpha_s D) / sigma_s the noise of x_s under D
    and s^2 = sigma'^2 (1 - (rho'/rho_s)^2) the variance of q(x' | x_s, D).

    What was drawn inside of the window by older estimates is thrown away. size: steps from x_s to x'; 1 is an ordinary
    ancestral step, 0 is off; where there are fewer, from the first. noise: 1 draws from the posterior, 0 is the DDIM
    map. low, high: the shares of the run between which it acts. seed: another draw; noise follows the picture, not the
    batch. Whatever sampler runs is overruled: use one of one evaluation a step. Keeps `size` states.
    """

    size: int = 2
    noise: float = 1.0
    low: float = 0.0
    high: float = 1.0
    seed: int = 0

    order: ClassVar[int] = 45
    passes: ClassVar[int] = 8

    def __post_init__(self) -> None:
        if self.size < 0:
            raise UsageError(f"sliding-window size={self.size} is negative; 0 is off, 1 an ancestral step")
        if not 0 <= self.noise <= 1:
            raise UsageError(f"sliding-window noise={self.noise} lies outside [0, 1]; 0 draws none, 1 the posterior's")

    @property
    def moves(self) -> bool:
        return self.rule.moves or self.size > 0

    def guide(self, ctx: Context) -> Guide:
        guided = yield from self.rule.guide(ctx)
        if self.size == 0:
            return guided
        identities(ctx, self)  # at each step, for only the first one can tell
        ctx.scoped(0).keep(self, guided.denoised)
        level = ctx.x.new_tensor([ctx.start.alpha, ctx.start.sigma], dtype=_wide(ctx.x)).expand(len(ctx.x), 1, 2)
        for place, now in ((1, guided.x[:, None]), (2, level)):
            before = ctx.scoped(place).recall(self)
            kept = now if before is None else torch.cat([before, now], 1)[:, -self.size :]
            ctx.scoped(place).keep(self, kept)
        return guided

    def after(self, ctx: Context, x: Tensor) -> Tensor:
        if self.size > 0 and self.low <= ctx.step / ctx.steps < self.high:
            x = self._drawn(ctx)
        return self.rule.after(ctx, x)

    def _drawn(self, ctx: Context) -> Tensor:
        """x at the end of the step."""
        clean, states, levels = (ctx.scoped(place).recall(self) for place in range(3))
        anchor, (alpha, sigma), goal = states[:, 0], levels[:, 0].unbind(1), ctx.level
        if goal.sigma == 0:
            return goal.alpha * clean
        variance = goal.sigma**2 * (1 - (goal.sigma * alpha / (goal.alpha * sigma)) ** 2) * self.noise**2
        along, aside = (((goal.sigma**2 - variance).clamp(min=0)).sqrt() / sigma, variance.sqrt())
        weights = (along, goal.alpha - along * alpha, aside)
        of_anchor, of_clean, of_noise = (ctx.column(weight.to(clean.dtype)) for weight in weights)
        x = of_anchor * anchor + of_clean * clean
        if self.noise == 0:
            return x
        return x + of_noise * row_noise(identities(ctx, self), clean, self.seed, "sliding-window", ctx.step)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64
