"""Between the posterior and the end of the run: Blasingame & Liu 2025, arXiv 2502.08006.

A loss of the clean estimate D(x_t) is the greedy, one-step version of the loss of the sample itself. With K steps of a
solver from x_t the gradient comes nearer to that of the sample, at K times the cost.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...errors import UsageError
from ..denoiser import Denoiser
from ..flow_ancestral import flow_time
from ..sampler import Levels
from ..schedule import Level, NoiseSchedule


def predict_clean(
    denoiser: Denoiser, x: Tensor, level: Level, *, solve_steps: int = 0, condition: Any = None, **settings: Any
) -> Tensor:
    """The clean data (B, ...) that x (B, ...) at `level` leads to, attached to autograd.

    solve_steps: 0 is D(x); K is the end of K steps of a solver, even in flow time. settings: sampler (Euler's by
    default; its first step alone is D(x)), method, parameters, noise, ... as `samplers.adjoint.sample` takes them.
    """
    if solve_steps < 0:
        raise UsageError(f"solve_steps={solve_steps} must not be negative; 0 is the denoised estimate")
    if solve_steps == 0:
        return denoiser(x, level, condition).denoised
    from .sample import sample

    levels = even_levels(denoiser.schedule, level, solve_steps)
    return sample(denoiser, x, grid=levels, condition=condition, **{"sampler": "euler", **settings})


def even_levels(schedule: NoiseSchedule, level: Level, steps: int) -> Levels:
    """From `level` to clean data in equal distances of flow time."""
    start = flow_time(level)
    return (level, *(level_of_flow_time(start * (1 - i / steps), schedule) for i in range(1, steps + 1)))


def level_of_flow_time(time: float, schedule: NoiseSchedule) -> Level:
    return schedule.level_of_rho(time / (1 - time)) if time > 0 else schedule.clean
