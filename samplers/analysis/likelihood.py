"""Log-likelihood by the probability-flow ODE (Song et al. 2021, arXiv 2011.13456).

With u = x / alpha, D the denoised picture and d coordinates, from the least noise (0) to the most (T):

    du / dlam = D - u
    log p(x_0) = log p_T(x_T) + d log(alpha_T / alpha_0) + INT (alpha tr(dD/dx) - d) dlam
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..noise import SeededNoise
from ..schedule import Level
from .flow import integrate, upward
from .jacobian import jacobian_of, rademacher, rows_of

Number = float | Tensor
Prior = Callable[[Tensor, Number, Number], Tensor]  # (x_T, alpha_T, sigma_T) -> log density (B,)


@dataclass(frozen=True)
class GaussianPrior:
    """Log density of x_T as N(0, alpha^2 variance + sigma^2), in nats. variance: of the data, 0 for pure noise."""

    variance: float = 0.0

    def __call__(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        spread = torch.as_tensor(alpha**2 * self.variance + sigma**2, dtype=x.dtype, device=x.device)
        flat = rows_of(x)
        return -(flat.square().sum(1) / spread + flat.shape[1] * (2 * math.pi * spread).log()) / 2


@dataclass(frozen=True, eq=False)
class Likelihood:
    """nats (B,): log density of x at the grid's least noise. latents (B, ...): x_T, where the flow takes x."""

    nats: Tensor
    latents: Tensor

    def bits(self, bin_width: float = 1.0) -> Tensor:
        """Bits per dimension, (B,); see `bits_per_dimension`."""
        return bits_per_dimension(self.nats, self.latents[0].numel(), bin_width)


def bits_per_dimension(nats: Tensor, dimension: int, bin_width: float = 1.0) -> Tensor:
    """-log2(p bin_width^d) / d of a log density in nats. bin_width: distance of two grey levels in the units of x,
    1/127.5 for eight bits in [-1, 1]; 1 leaves a density."""
    return -(nats / dimension + math.log(bin_width)) / math.log(2)


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    *,
    grid: Any = "exponential",
    steps: int = 50,
    probes: int = 0,
    noise: SeededNoise | None = None,
    prior: Prior | None = None,
    condition: Any = None,
    method: str = "rk4",
    derivative: str = "forward",
) -> Likelihood:
    """Log density of x (B, ...), which is data at the least noisy level of the grid: x = alpha x_0 + sigma noise there.
    (At sigma = 0 a density need not exist.)

    probes: 0 for the exact trace (d products an evaluation: for d up to some hundred), else so many Rademacher probes
    (Hutchinson), seeded by `noise` and the same along the whole solve. prior: log p_T, by default N(0, sigma_T^2).
    """
    levels = upward(grid, denoiser.schedule, steps)
    vectors = rademacher(noise, probes, x)
    d = x[0].numel()

    def slope(level: Level, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        u = state[0]
        jacobian = jacobian_of(denoiser, level.alpha * u, level, condition=condition, derivative=derivative)
        denoised, trace = jacobian.value_and_trace(vectors)
        return denoised - u, level.alpha * trace - d

    first, last = levels[0], levels[-1]
    start = (x / first.alpha, torch.zeros_like(rows_of(x)[:, 0]))
    u, gained = integrate(slope, start, levels, denoiser.schedule, method)
    latents = last.alpha * u
    ends = (prior or GaussianPrior())(latents, last.alpha, last.sigma)
    return Likelihood(ends + gained + d * math.log(last.alpha / first.alpha), latents)
