"""DPM2 of k-diffusion, which is DPM-Solver-2 (Lu et al. 2022, arXiv 2206.00927, Algorithm 1): the midpoint rule on
d(x/alpha)/d rho = noise, with the midpoint halfway in log rho.

    rho_m = sqrt(rho rho'),    x_m / alpha_m = x / alpha + (rho_m - rho) noise_0
    x' / alpha' = x / alpha + (rho' - rho) noise_m

Here in terms of `denoised`, which comes to the same: x_m is that of DPM++ 2S, and with h = lam' - lam

    x' = (sigma' / sigma) x + alpha' (expm1(-h) expm1(h/2) D_0 + 2 sinh(h/2) D_m)

The weights grow with h, so that long steps, and the ancestral form with its longer ones, err more than DPM++ 2S does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .ancestral import Ancestral
from .exponential import moments
from .single_step import SingleStep


@dataclass(frozen=True)
class DPM2Sampler(SingleStep):
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2

    def tableau(self, h: float) -> tuple[tuple[float, tuple[float, ...]], ...]:
        (part,) = moments(h / 2, 1)
        if math.isinf(h):  # from pure noise the midpoint rule of the other form, d(x/sigma)/d(alpha/sigma) = denoised
            return (0.5, (part,)), (1.0, (0.0, 1.0))
        return (0.5, (part,)), (1.0, (math.expm1(-h) * math.expm1(h / 2), 2 * math.sinh(h / 2)))


@dataclass(frozen=True)
class DPM2AncestralSampler(Ancestral, DPM2Sampler):
    pass
