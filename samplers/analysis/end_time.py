"""Gradients with respect to where a flow ends: the largest noise, or the stopping level, learned by descent.

For a loss at the end of an ODE dz/dt = f, dL/dT = dL/dz(T) . f(z(T), T), plus what the loss itself says of T (section
C.8 of the sampler notes, after TO-FLOW, CVPR 2022). Times are those of the `NoiseSchedule`, not the network's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..noise import SeededNoise
from ..schedule import Level
from .jacobian import Jacobian, differentiable_attention, rademacher, rows_of
from .likelihood import GaussianPrior, Prior


def velocity(denoiser: Denoiser, x: Tensor, level: Level, *, condition: Any = None) -> Tensor:
    """dx/dt of the probability flow, (B, ...): alpha' denoised + sigma' noise, finite up to alpha = 0."""
    dalpha, dsigma = _rates(denoiser, level)
    prediction = denoiser(x, level, condition)
    return dalpha * prediction.denoised + dsigma * prediction.noise


def end_time_gradient(
    denoiser: Denoiser, x: Tensor, level: Level, gradient: Tensor, *, condition: Any = None
) -> Tensor:
    """dL/dT (B,) of a flow that stops at `level`, where it stands at x and the loss has this gradient in x (B, ...)."""
    return rows_of(gradient * velocity(denoiser, x, level, condition=condition)).sum(1)


def likelihood_end_time_gradient(
    denoiser: Denoiser,
    x: Tensor,
    level: Level,
    *,
    prior: Prior | None = None,
    probes: int = 0,
    noise: SeededNoise | None = None,
    condition: Any = None,
) -> Tensor:
    """d(-log p(x_0)) / dT (B,) of `log_likelihood`, x its `latents` at `level`, the noisiest of the grid.

    -d/dT log p_T(x(T)) - tr(df/dx), where the prior changes with x, with alpha_T and with sigma_T. Zero where the prior
    is the true marginal.
    """
    dalpha, dsigma = _rates(denoiser, level)
    density = prior or GaussianPrior()

    def f(at: Tensor) -> Tensor:
        return velocity(denoiser, at, level, condition=condition)

    moving, trace = Jacobian(f, x).value_and_trace(rademacher(noise, probes, x))
    ends = tuple(torch.tensor(value, dtype=torch.float64, device=x.device) for value in (level.alpha, level.sigma))
    rates = tuple(torch.tensor(value, dtype=torch.float64, device=x.device) for value in (dalpha, dsigma))
    with differentiable_attention():
        change = torch.func.jvp(density, (x, *ends), (moving.to(x), *rates))[1]
    return -change - trace


def _rates(denoiser: Denoiser, level: Level) -> tuple[float, float]:
    """d alpha / dt and d sigma / dt at a level."""
    schedule = denoiser.schedule
    t = schedule.t_of_rho(level.rho)
    return float(schedule.dalpha(t)), float(schedule.dsigma(t))
