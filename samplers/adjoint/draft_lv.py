"""DRaFT-LV: Clark et al. 2023, arXiv 2309.17400. The gradient of the last step, with less variance.

    x_0 = end of the run, without a graph;   x_1^i = x_0 taken back up by fresh noise e_i;   x_0^i = the last step again
    loss = mean over i of loss(x_0^i)

One run and n last steps: (N + n) F + n B for n draws where `truncated` (last=1) has one. For parameters and
conditions; the gradient in x is zero. The number of draws of the paper is not known to us from its text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..denoiser import Denoiser
from ..grids import make_grid
from ..noise import SeededNoise
from ..registry import make_sampler
from ..sampler import Sampler
from .chain import SamplerChain


def draft_lv(
    denoiser: Denoiser,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    noise: SeededNoise | None,
    draws: int = 2,
    sampler: str | Sampler = "ddim",
    grid: Any = "karras",
    steps: int = 20,
    condition: Any = None,
) -> tuple[Tensor, Tensor]:
    """The losses (B,), averaged over the draws and attached to parameters and condition, and the run's end (B, ...).

    x: (B, ...) at the first level. loss: ends (B, ...) -> (B,). noise: one seed a row, for the draws. Raises UsageError
    without noise or draws.
    """
    if draws < 1 or noise is None:
        raise UsageError("draft-lv needs draws of 1 or more and noise=SeededNoise([seed, ...]), one seed a row")
    levels = make_grid(grid, denoiser.schedule, steps)
    chain = SamplerChain(denoiser, levels, condition, sampler=make_sampler(sampler), noise=noise)
    state = chain.begin(x.detach())
    with torch.no_grad():
        while chain.steps(state) > 1:
            state = chain.step(state)
        end = chain.step(state).x
    level, goal = state.level, state.goal
    keep = level.alpha / goal.alpha
    fresh = math.sqrt(max(0.0, level.sigma**2 - (goal.sigma * keep) ** 2))
    losses = []
    for i in range(draws):
        lifted = torch.add(end * keep, noise.draw("draft-lv", i, end), alpha=fresh)
        losses.append(loss(chain.step(replace(state, x=lifted)).x))
    return torch.stack(losses).mean(0), end
