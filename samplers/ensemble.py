"""Denoisers of a target that is known only by its log density, up to a constant and without a gradient.

With p_0 the target, x_0 ~ p_0 given x has density proportional to p_0(x_0) N(x_0; x / alpha, rho^2). So

    alone     draws x_0^j ~ N(x / alpha, rho^2),   w_j = p_0(x_0^j)
    together  draws z_j ~ q for all rows at once,  w_ij = p_0(z_j) N(z_j; x_i / alpha, rho^2) / q(z_j)

and denoised = sum_j w_j x_0^j / sum_j w_j are weighted means, exact in the limit of many draws J, with an error like
J^-1/2 and of a size that the effective sample size (sum w)^2 / sum w^2 tells. Alone is good while rho is below the size
of the target; above it most draws miss.
Together, q is one Gaussian fitted to what the rows' own clouds say of the target, so that one set of evaluations of p_0
serves all rows; it is good at large rho and misses narrow posteriors at small rho.

Sharing information between particles is the idea of ensemble score estimates (Bischoff & Riel 2024, arXiv 2401.17539);
their rule was not at hand. The rule here, its fit and the choice between the two are our own derivation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from .noise import SeededNoise, derived_seed
from .prediction import SAMPLE, Prediction
from .schedule import Level, NoiseSchedule


class Estimate(NamedTuple):
    """denoised: (B, ...). effective: (B,) effective sample size, from 1, where one draw has all weight, to J."""

    denoised: Tensor
    effective: Tensor


@dataclass(frozen=True)
class SampledDenoiser:
    """Each row by draws of its own around x / alpha.

    log_density: (n, ...) -> (n,), up to a constant. noise: one seed a row; a row's draws depend on its seed and on the
    level only, so an estimate can be made again, and is smooth in x. draws: J, evaluations of the density a row.
    Raises UsageError at pure noise, where x / alpha is infinite.
    """

    log_density: Callable[[Tensor], Tensor]
    schedule: NoiseSchedule
    noise: SeededNoise
    draws: int = 1000

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        """`estimate` as a Prediction. condition: unused."""
        return Prediction(x, level, self.estimate(x, level).denoised, SAMPLE)

    def estimate(self, x: Tensor, level: Level) -> Estimate:
        """x: (B, ...) at `level`."""
        if len(x) != len(self.noise.seeds):
            raise UsageError(f"{len(self.noise.seeds)} seeds for {len(x)} rows; give one seed a row")
        generators = self.noise.generators(f"ensemble {level.rho!r}", 0)
        unit = torch.stack([torch.randn(self.draws, *x.shape[1:], generator=g, dtype=x.dtype) for g in generators])
        return weighted(*around(x, level, unit.to(x.device), self.log_density))


@dataclass(frozen=True)
class EnsembleDenoiser:
    """Rows help each other: the one denoiser here whose rows see their batch mates, so a row alone is another estimate.

    Every call first takes `pilot` draws for each row alone; the law of total covariance over these clouds gives the
    mean and the covariance of q, which is widened by `widen` and drawn from `draws` times. A row takes the estimate
    with the larger effective sample size. pilot * B + draws evaluations of the density; the fit needs d x d numbers for
    rows of d.
    """

    log_density: Callable[[Tensor], Tensor]
    schedule: NoiseSchedule
    seed: int = 0
    draws: int = 1000
    pilot: int = 100
    widen: float = 1.2

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        """`estimate` as a Prediction. condition: unused."""
        return Prediction(x, level, self.estimate(x, level).denoised, SAMPLE)

    def estimate(self, x: Tensor, level: Level) -> Estimate:
        """x: (B, ...) at `level`."""
        generator = torch.Generator("cpu").manual_seed(derived_seed(self.seed, "ensemble", level.rho))
        size = x[0].numel()
        first = torch.randn(1, self.pilot, *x.shape[1:], generator=generator, dtype=x.dtype).to(x.device)
        second = torch.randn(self.draws, size, generator=generator, dtype=x.dtype).to(x.device)
        alone, logs = around(x, level, first.expand(len(x), *first.shape[1:]), self.log_density)
        mean, root = fitted(alone.flatten(2), torch.softmax(logs, 1))
        shared = mean + second @ (self.widen * root).T
        importance = self.log_density(shared.reshape(self.draws, *x.shape[1:])) + second.square().sum(1) / 2
        apart = torch.cdist(x.flatten(1) / level.alpha, shared).square() / (2 * level.rho**2)
        together = weighted(shared.expand(len(x), *shared.shape), importance - apart)
        own = weighted(alone, logs)
        better = together.effective > own.effective
        rows = better.reshape(-1, *[1] * (x.dim() - 1))
        denoised = torch.where(rows, together.denoised.reshape(x.shape), own.denoised)
        return Estimate(denoised, torch.where(better, together.effective, own.effective))


def around(x: Tensor, level: Level, unit: Tensor, log_density: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Draws (B, J, ...) from N(x / alpha, rho^2) made of `unit` noise, and the log density (B, J) there."""
    if math.isinf(level.rho):
        raise UsageError("the mean of x / alpha is infinite at pure noise; begin the grid below it")
    at = torch.add((x / level.alpha)[:, None], unit, alpha=level.rho)
    return at, log_density(at.flatten(0, 1)).reshape(at.shape[:2])


def weighted(values: Tensor, logs: Tensor) -> Estimate:
    """Weighted means of values (B, J, ...) with log weights (B, J), and their effective sample sizes."""
    share = torch.softmax(logs, dim=1)
    return Estimate(torch.einsum("bj,bj...->b...", share, values), 1 / share.square().sum(1))


def fitted(values: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and a root (d, d) of the covariance of the mixture over rows of the weighted clouds (B, J, d)."""
    mean = torch.einsum("bj,bjd->d", share, values) / len(values)
    apart = values - mean
    covariance = torch.einsum("bj,bjd,bje->de", share, apart, apart) / len(values)
    floor = 1e-6 * covariance.diagonal().mean() + torch.finfo(values.dtype).tiny  # one draw may have all weight
    return mean, torch.linalg.cholesky(covariance + floor * torch.eye(len(mean), dtype=values.dtype))
