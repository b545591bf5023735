"""Out-of-distribution detection by score norms at several scales (multiscale score matching analysis).

    m_i = sigma_i |score(x, sigma_i)| = |noise predicted at (x, sigma_i)|,    i = 1 .. L

The picture is fed *without* added noise, at u = x: a network of a schedule with alpha < 1 sees alpha x. A density of
these L numbers is fitted to training pictures; its negative logarithm is the score. On the embedded model it finds
smooth strangers of which likelihood is less sure (docs/analysis.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError
from ..denoiser import Denoiser
from ..sampler import Levels
from ..schedule import Level, NoiseSchedule
from .gaussian_mixture import GaussianMixture, fit_mixture
from .jacobian import rows_of


def geometric_levels(schedule: NoiseSchedule, low: float = 0.01, high: float = 1.0, count: int = 10) -> Levels:
    """Levels with rho in geometric steps. The defaults are for pictures in [0, 1], whose deviation is about 0.25: widen
    them for latents of unit deviation."""
    if not 0 < low < high or count < 1:
        raise UsageError(f"score norms want 0 < low < high and count >= 1, not {low}, {high} and {count}")
    return schedule.levels_of_rho(np.geomspace(low, high, count))


def score_norm_features(denoiser: Denoiser, clean: Tensor, levels: Sequence[Level], *, condition: Any = None) -> Tensor:
    """The features (B, L), of the dtype of the predictions, of clean pictures (B, ...)."""
    return torch.stack([rows_of(denoiser(l.alpha * clean, l, condition).noise).norm(dim=1) for l in levels], dim=1)


@dataclass(frozen=True, eq=False)
class _Standard:
    """Features with mean and deviation of the training set taken out, in float64."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor) -> _Standard:
        if features.dim() != 2 or len(features) < 2:
            raise UsageError(
                f"a detector is fitted to features (N, L) of at least 2 pictures, not {tuple(features.shape)}"
            )
        features = features.detach().double().cpu()
        return cls(features.mean(0), features.std(0).clamp(min=1e-12))

    def __call__(self, features: Tensor) -> Tensor:
        return (features.detach().double().cpu() - self.mean) / self.deviation


@dataclass(frozen=True, eq=False)
class MixtureDetector:
    """Score: minus the log density under a mixture of Gaussians, in nats; high for strangers."""

    standard: _Standard
    mixture: GaussianMixture

    @classmethod
    def fit(cls, features: Tensor, components: int = 4, *, seed: int = 0) -> MixtureDetector:
        """features: (N, L) of training pictures. `choose_components` chooses their number by cross-validation."""
        standard = _Standard.of(features)
        return cls(standard, fit_mixture(standard(features), components, seed=seed))

    def score(self, features: Tensor) -> Tensor:
        """(B,) of features (B, L)."""
        return -self.mixture.log_density(self.standard(features))


@dataclass(frozen=True, eq=False)
class NeighbourDetector:
    """Score: distance to the k-th nearest training picture in standardised features; high for strangers."""

    standard: _Standard
    known: Tensor
    k: int

    @classmethod
    def fit(cls, features: Tensor, k: int = 5) -> NeighbourDetector:
        """features: (N, L) of training pictures, N >= k."""
        if not 1 <= k <= len(features):
            raise UsageError(f"k must lie in 1 .. {len(features)}, the number of training pictures, not {k}")
        standard = _Standard.of(features)
        return cls(standard, standard(features), k)

    def score(self, features: Tensor) -> Tensor:
        """(B,) of features (B, L)."""
        return torch.cdist(self.standard(features), self.known).kthvalue(self.k, dim=1).values
