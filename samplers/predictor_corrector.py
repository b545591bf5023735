"""Predictor-corrector sampling: Song et al. 2021, arXiv 2011.13456, Algorithms 1 to 5.

At each level `corrections` Langevin steps, then a step of the reverse SDE to the next one. With z fresh noise and g the
score, -noise / sigma, a Langevin step is

    x <- x + s g + sqrt(2 s) z,    s = 2 a (snr |z| / |g|)^2

a is 1 - beta of a time step on VP, 1 elsewhere. "ald" has s = 2 a (snr sigma)^2 instead. The norms are those of each
row; the source takes their mean over the batch. The predictors, in the words of `ddpm`: "ancestral" has the variance of
the posterior, "reverse" that of the forward step, which is the source's reverse diffusion on VE and its ancestral
sampling on VP. The last step takes no noise and ends at `denoised`. Every step is one evaluation, corrections + 1 a
level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from .ddpm import DDPMSampler
from .first_order import first_order_step
from .prediction import Prediction
from .sampler import Leg, Levels, Sampler, State, finish
from .schedule import DiscreteVP, Level, NoiseSchedule, VariancePreserving

PREDICTORS = {"reverse": "large", "ancestral": "small"}


class Correction(NamedTuple):
    """x' = x + reach k (z - pull k noise), with k = |z| / |noise| of each row, or 1 without `norms`."""

    reach: float
    pull: float
    norms: bool


@dataclass(frozen=True)
class PredictorCorrectorSampler(Sampler):
    """snr: signal-to-noise ratio of a Langevin step; the source has 0.16 (CIFAR-10), 0.17 (CelebA), 0.075 (LSUN), 0.15
    (VE at 256 pixels). corrections: Langevin steps at each level. corrector: "langevin" or "ald". predictor: "reverse"
    or "ancestral"."""

    snr: float = 0.16
    corrections: int = 1
    corrector: str = "langevin"
    predictor: str = "reverse"
    order: ClassVar[int] = 1
    stochastic = True

    def __post_init__(self) -> None:
        if self.corrector not in ("langevin", "ald"):
            raise UsageError(f'predictor-corrector corrector is "langevin" or "ald", not {self.corrector!r}')
        if self.predictor not in PREDICTORS:
            raise UsageError(f'predictor-corrector predictor is "reverse" or "ancestral", not {self.predictor!r}')
        if self.snr <= 0 or self.corrections < 0:
            raise UsageError("predictor-corrector needs snr above 0 and corrections of at least 0")

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        predictor = DDPMSampler(PREDICTORS[self.predictor])
        return tuple(
            leg
            for level, goal in pairwise(levels)
            for leg in (*[self._correction(level, schedule)] * self.corrections, *predictor.plan((level, goal)))
        )

    def _correction(self, level: Level, schedule: NoiseSchedule | None) -> Leg:
        """In terms of the noise, s g = -2 a snr^2 k^2 sigma noise and sqrt(2 s) z = 2 sqrt(a) snr k sigma z."""
        root = math.sqrt(kept_in_a_step(level, schedule))
        reach, pull = 2 * root * self.snr * level.sigma, root * self.snr
        return Leg((level,), level, Correction(reach, pull, self.corrector == "langevin"), fresh=True)

    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        weights = state.leg.weights
        if not isinstance(weights, Correction):
            denoised, predicted, fresh = weights
            return finish(state, first_order_step(prediction, denoised, predicted, fresh, noise))
        assert noise is not None, "a correction needs noise"
        if not weights.norms:
            return finish(state, state.x + weights.reach * torch.add(noise, prediction.noise, alpha=-weights.pull))
        k = norms(noise) / norms(prediction.noise)
        pulled = torch.add(noise, prediction.noise * k, alpha=-weights.pull)
        return finish(state, torch.addcmul(state.x, pulled, k, value=weights.reach))


def norms(x: Tensor) -> Tensor:
    """Euclidean norm of each row, (B, 1, ...)."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True)


def kept_in_a_step(level: Level, schedule: NoiseSchedule | None) -> float:
    """1 - beta of a time step, alpha^2 over that one step before; on continuous VP a step is a thousandth."""
    if not isinstance(schedule, VariancePreserving) or level.alpha <= 0:
        return 1.0
    time = float(schedule.t_of_rho(level.rho))
    before = max(time - (1.0 if isinstance(schedule, DiscreteVP) else schedule.T / 1000), 0.0)
    return float((schedule.alpha(time) / schedule.alpha(before)) ** 2)
