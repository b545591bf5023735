"""A density from four moments, by maximum entropy: the least that the moments say about the posterior's shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UsageError
from .posterior import Moments


@dataclass(frozen=True, eq=False)
class Marginal:
    """positions (B, n), equally spaced, and the density (B, n) there; it integrates to 1 over them."""

    positions: Tensor
    density: Tensor


def maximum_entropy(moments: Moments, *, deviations: float = 5.0, points: int = 501, iterations: int = 200) -> Marginal:
    """p(c) proportional to exp(sum_k l_k c^k), k = 1 .. 4, with the given moments, on mean +- `deviations` standard
    deviations, in float64. (On the whole line heavier tails than the Gaussian's have no such density; on an interval
    every possible set of moments has one.)

    The l are the minimum of the convex log Z(l) - l . moments, found by damped Newton steps, each row by itself. Raises
    UsageError for moments that no density has: skewness^2 + 1 must stay below the kurtosis.
    """
    mean, variance, third, fourth = (
        m.detach().double() for m in (moments.mean, moments.variance, moments.third, moments.fourth)
    )
    deviation = variance.sqrt()
    skewness, kurtosis = third / deviation**3, fourth / variance**2
    if bool((~(variance > 0) | ~(kurtosis > skewness**2 + 1)).any()):
        raise UsageError("no density has these moments (variance > 0 and skewness^2 + 1 < kurtosis are needed)")
    z = torch.linspace(-1, 1, points, dtype=torch.float64, device=mean.device)  # in units of the half width
    powers = torch.stack([z, z**2, z**3, z**4])
    wanted = torch.stack([torch.zeros_like(mean), torch.ones_like(mean), skewness, kurtosis], dim=1)
    wanted = wanted / deviations ** torch.arange(1.0, 5.0, dtype=torch.float64, device=mean.device)
    start = torch.zeros_like(wanted)
    start[:, 1] = -(deviations**2) / 2  # the Gaussian
    log = torch.log_softmax(_solved(start, powers, wanted, iterations) @ powers, dim=1)
    width = 2 * deviations * deviation / (points - 1)
    positions = mean[:, None] + deviations * deviation[:, None] * z
    return Marginal(positions, log.exp() / width[:, None])


def _solved(l: Tensor, powers: Tensor, wanted: Tensor, iterations: int) -> Tensor:
    """The multipliers l (B, 4): Newton with step halving; a row that has arrived no longer moves."""

    def objective(l: Tensor) -> Tensor:
        return torch.logsumexp(l @ powers, dim=1) - (l * wanted).sum(1)

    for _ in range(iterations):
        p = torch.softmax(l @ powers, dim=1)
        means = p @ powers.T
        slope = means - wanted
        curvature = torch.einsum("bn,in,jn->bij", p, powers, powers) - means[:, :, None] * means[:, None, :]
        move = torch.linalg.solve(curvature + 1e-14 * torch.eye(4).to(curvature), slope)
        gain, before, share = (slope * move).sum(1), objective(l), torch.ones_like(wanted[:, 0])
        for _ in range(40):
            poor = objective(l - share[:, None] * move) > before - 1e-4 * share * gain + 1e-15 * before.abs()
            share = torch.where(poor, share / 2, share)
        arrived = slope.abs().amax(1) < 1e-13
        l = l - torch.where(arrived, 0.0, share)[:, None] * move
    return l
