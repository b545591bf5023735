"""Consistency multistep: Song et al. 2023, arXiv 2303.01469, Algorithm 1; Luo et al. 2023, arXiv 2310.04378 (LCM).

    x' = alpha' denoised + sigma' xi

c = 1 of the first-order family: all noise is fresh, and clean data end the run. For distilled networks, whose
`denoised` is the end of the trajectory. Their boundary condition belongs to what the network says, not to the step:
`latent_consistency` has LCM's. (Consistency models proper stop at sigma_min > 0 and add the noise above it.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..errors import UsageError
from .first_order import FirstOrder
from .prediction import Pair, Parameterization
from .sampler import Levels
from .schedule import DiscreteVP, Level


@dataclass(frozen=True)
class LCMSampler(FirstOrder):
    stochastic = True

    def fresh_share(self, level: Level, goal: Level) -> float:
        return 1.0


def latent_consistency(kind: Parameterization, scaling: float = 10.0, sigma_data: float = 0.5) -> Parameterization:
    """What an LCM network says: denoised = c_skip x + c_out (denoised of `kind`), with s = scaling * time,

    c_skip = sigma_data^2 / (s^2 + sigma_data^2),    c_out = s / sqrt(s^2 + sigma_data^2)

    which is x at time 0 and, to 1e-5, the plain one from time 20 on.
    """

    def denoised(level: Level) -> Pair:
        s = scaling * level.time
        skip, out = sigma_data**2 / (s**2 + sigma_data**2), s / math.hypot(s, sigma_data)
        dx, dv = kind.denoised(level)
        return skip + out * dx, out * dv

    return replace(kind, name=f"latent_consistency_{kind.name}", denoised=denoised)


def distilled_levels(schedule: DiscreteVP, steps: int, original: int = 50, strength: float = 1.0) -> Levels:
    """The grid that LCM and TCD students were distilled on: of the times K/original * (1 .. original) - 1, those at
    floor(i * original / steps), noisiest first; then clean data. original: `original_inference_steps` of the student's
    scheduler. strength: the share of those times, from the clean end, that image-to-image runs through. UsageError for
    more steps than times, or more times than the model has."""
    count = int(schedule.T) + 1
    if not 1 <= original <= count:
        raise UsageError(f"original_inference_steps={original} of a model with {count} times; take 1 to {count}")
    taken = int(original * strength)
    if not 1 <= steps <= taken:
        raise UsageError(f"a student distilled on {taken} times takes 1 to {taken} steps, not {steps}")
    times = (np.arange(taken, 0, -1) * (count // original) - 1)[np.arange(steps) * taken // steps]
    return (*schedule.levels(times), schedule.clean)
