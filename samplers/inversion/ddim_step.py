"""One step of DDIM as an affine map of x and the network's slope, which inversions turn round.

    x' = (alpha'/alpha) x + (sigma' - alpha' sigma / alpha) noise(x)          everywhere but
    x' = (sigma'/sigma) x + alpha' denoised(x)                                from pure noise, alpha = 0

Song et al. 2020, arXiv 2010.02502, eq. 12 without noise; the second line is the same step in its other form.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..schedule import Level


class Affine(NamedTuple):
    """x' = keep x + gain slope, with slope the `noise` of a prediction, or its `denoised`."""

    slope: str
    keep: float
    gain: float

    def forth(self, x: Tensor, slope: Tensor) -> Tensor:
        return torch.add(x * self.keep, slope, alpha=self.gain)

    def back(self, x: Tensor, slope: Tensor) -> Tensor:
        """x before the step, with x the one after it."""
        return torch.add(x / self.keep, slope, alpha=-self.gain / self.keep)


def ddim_step(level: Level, goal: Level) -> Affine:
    if level.alpha <= 0:
        return Affine("denoised", goal.sigma / level.sigma, goal.alpha)
    keep = goal.alpha / level.alpha
    return Affine("noise", keep, goal.sigma - keep * level.sigma)
