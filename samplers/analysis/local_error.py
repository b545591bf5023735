"""The error of one step, estimated by a second method of higher order: a penalty for training, and a way to place
levels.

    r = |x_C - x_P|^2 / S,    S = d (alpha'^2 + sigma'^2)

x_P: the first-order step; x_C: its correction, Heun's or UniC-1's. S is the size of x for data of unit variance, so r
is the same in every schedule that passes the same lam. After locally regularized neural differential equations, which
add such an estimate at a random point of the trajectory to the loss; for diffusion the form is that of section C.9 of
the sampler notes. r falls with the fourth power of the step in lam.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError
from ..denoiser import Denoiser
from ..first_order import first_order_step
from ..noise import derived_seed
from ..sampler import Levels
from ..schedule import Level, NoiseSchedule
from .jacobian import rows_of


def _step(
    denoiser: Denoiser, x: Tensor, level: Level, goal: Level, corrector: str, condition: Any
) -> tuple[Tensor, Tensor]:
    """(corrected x, correction) at the goal, from two evaluations.

    heun: alpha' (rho' - rho) / 2 (noise' - noise); unic: alpha' (1 - e^-h) / 2 (denoised' - denoised), h = lam' - lam.
    """
    first = denoiser(x, level, condition).step_on
    predicted = first_order_step(first, goal.alpha, goal.sigma)
    second = denoiser(predicted, goal, condition).step_on
    if corrector == "heun":
        correction = goal.alpha * (goal.rho - level.rho) / 2 * (second.noise - first.noise)
    elif corrector == "unic":
        correction = -goal.alpha * math.expm1(level.lam - goal.lam) / 2 * (second.denoised - first.denoised)
    else:
        raise UsageError(f"corrector is 'heun' or 'unic', not {corrector!r}")
    return predicted + correction, correction


def _squared(correction: Tensor, goal: Level) -> Tensor:
    return rows_of(correction).square().mean(1) / (goal.alpha**2 + goal.sigma**2)


def step_error(
    denoiser: Denoiser, x: Tensor, level: Level, goal: Level, *, corrector: str = "heun", condition: Any = None
) -> Tensor:
    """r (B,) of the step from x (B, ...) at `level` to `goal`; differentiable in x and in the network's weights.

    corrector: "heun" (Euler and Heun on the noise) or "unic" (UniP-1 and UniC-1 of UniPC on the data, with B(h) =
    e^h - 1). Both levels have finite lam.
    """
    if min(level.alpha, goal.alpha, goal.sigma) <= 0:
        raise UsageError("the local error is estimated between levels with signal and noise; drop the ends of the grid")
    return _squared(_step(denoiser, x, level, goal, corrector, condition)[1], goal)


def random_leg(
    schedule: NoiseSchedule, seed: int, step: int, *, length: float = 0.5, low: float = -3.0, high: float = 3.0
) -> tuple[Level, Level]:
    """(level, goal) of a step of `length` in lam that lies somewhere in [low, high], uniform; for training step `step`.

    One level for a batch: a denoiser is asked about one level at a time.
    """
    if not 0 < length < high - low:
        raise UsageError(f"a step of length {length} does not fit between lam {low} and {high}")
    generator = torch.Generator("cpu").manual_seed(derived_seed(seed, "local error", step))
    share = torch.rand((), generator=generator, dtype=torch.float64).item()
    lam = low + share * (high - low - length)
    return schedule.level_of_rho(math.exp(-lam)), schedule.level_of_rho(math.exp(-lam - length))


def local_error_loss(
    denoiser: Denoiser,
    clean: Tensor,
    noise: Tensor,
    leg: tuple[Level, Level],
    *,
    corrector: str = "heun",
    condition: Any = None,
) -> Tensor:
    """Mean of r over the batch, a scalar to add to a training loss. clean, noise: (B, ...); leg: of `random_leg`."""
    level, goal = leg
    x = level.alpha * clean + level.sigma * noise
    return step_error(denoiser, x, level, goal, corrector=corrector, condition=condition).mean()


def equidistributed(
    denoiser: Denoiser,
    x: Tensor,
    pilot: Sequence[Level],
    steps: int,
    *,
    corrector: str = "heun",
    condition: Any = None,
    floor: float = 0.1,
) -> Levels:
    """A grid of `steps` Euler steps with equal local errors, from the errors along a pilot run of many small steps.

    A step of length h in lam errs by c h^2, so equal errors want levels as dense as sqrt(c), and c is sqrt(r) / h^2 of
    the pilot's steps, root mean square over the rows of x (B, ...), which stands at pilot[0]. floor: least density, as
    a share of the mean. pilot: noisiest first, of finite lam; clean data at its end is kept, and costs one of the
    steps.
    """
    inner = [level for level in pilot if level.sigma > 0]
    wanted = steps if len(inner) == len(pilot) else steps - 1
    if inner[0].alpha <= 0:
        raise UsageError("the pilot begins at pure noise, where lam is infinite; use exponential or karras")
    if wanted < 1 or len(inner) < 3:
        raise UsageError("an equidistributed grid wants a pilot of 3 noisy levels and at least one step between them")
    densities = []
    with torch.no_grad():
        for level, goal in pairwise(inner):
            x, correction = _step(denoiser, x, level, goal, corrector, condition)
            densities.append(_squared(correction, goal).mean() ** 0.25 / (goal.lam - level.lam))
    density = torch.stack(densities).double().cpu().numpy()
    lams = np.array([level.lam for level in inner])
    widths = np.diff(lams)
    density = np.maximum(density, floor * (density * widths).sum() / widths.sum())
    reached = np.concatenate([[0.0], np.cumsum(density * widths)])
    middle = np.interp(reached[-1] * np.arange(1, wanted) / wanted, reached, lams)
    levels = denoiser.schedule.levels_of_rho(np.exp(-middle)) if wanted > 1 else ()
    return (inner[0], *levels, inner[-1], *([] if wanted == steps else [pilot[-1]]))
