"""Worlds whose truth is known in closed form: a Gaussian, mixtures of Gaussians, and a fractal tree of two classes.

Noisy data are x_t = alpha x + sigma e. All answers are exact and in float64; x is (B, d), alpha and sigma are numbers
or (B,). A condition is int64 (B,) of class numbers, where -1 means no condition; None is -1 for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError

Level = float | Tensor


def _float64(value: Tensor | Sequence[float] | Sequence[Sequence[float]] | np.ndarray | float) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


class Mixture:
    """Mixture of K Gaussians: weights (K,) of any sum, means (K, d), covariances (K, d, d), labels int (K,).

    Without labels all components belong to class 0.
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        means: Tensor | Sequence[Sequence[float]] | np.ndarray,
        covariances: Tensor | Sequence[Sequence[Sequence[float]]] | np.ndarray,
        labels: Tensor | Sequence[int] | None = None,
    ):
        weights, self.means, self.covariances = (
            _float64(weights),
            _float64(means),
            torch.as_tensor(covariances).double(),
        )
        count, d = self.means.shape
        if weights.shape != (count,) or self.covariances.shape != (count, d, d):
            shapes = f"{tuple(weights.shape)}, {tuple(self.means.shape)}, {tuple(self.covariances.shape)}"
            raise UsageError(f"weights, means, covariances have shapes {shapes}; expected (K,), (K, d), (K, d, d)")
        self.weights = weights / weights.sum()
        self.labels = torch.zeros(count, dtype=torch.long) if labels is None else torch.as_tensor(labels).long()
        self.variances, self.axes = torch.linalg.eigh(self.covariances)  # (K, d), (K, d, d) with axes as columns

    @property
    def dimension(self) -> int:
        return int(self.means.shape[1])

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def prior(self) -> Tensor:
        """Probability of each class, (C,)."""
        return torch.zeros(self.classes, dtype=torch.float64).index_add(0, self.labels, self.weights)

    def mean(self) -> Tensor:
        """Mean of the clean data, (d,)."""
        return self.weights @ self.means

    def covariance(self) -> Tensor:
        """Covariance of the clean data, (d, d)."""
        apart = self.means - self.mean()
        return torch.einsum("k,kij->ij", self.weights, self.covariances + apart[:, :, None] * apart[:, None, :])

    def _parts(self, x: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Projected offsets and noisy variances (B, K, d), log joint of x and component (B, K), alpha (B, 1, 1)."""
        a, s = (_float64(v).reshape(-1, 1, 1) for v in (alpha, sigma))
        offset = torch.einsum("bkd,kde->bke", x.double()[:, None, :] - a * self.means, self.axes)
        variance = a.square() * self.variances + s.square()
        log = -0.5 * (offset.square() / variance + (2 * math.pi * variance).log()).sum(-1)
        return offset, variance, log + self.weights.log(), a

    def _allowed(self, condition: Tensor | None, rows: int) -> Tensor:
        """Log weight (B, K) that admits the components of the condition's class; it renormalises the weights."""
        if condition is None:
            return torch.zeros(rows, 1, dtype=torch.float64)
        wanted = torch.as_tensor(condition).long().reshape(-1, 1).expand(rows, 1)
        if int(wanted.max()) >= self.classes:
            raise UsageError(f"condition {int(wanted.max())} of a mixture with {self.classes} classes; use -1 for none")
        share = self.prior()[wanted.clamp(min=0)]
        admitted = torch.where(self.labels == wanted, -share.log(), -torch.inf)
        return torch.where(wanted < 0, torch.zeros_like(admitted), admitted)

    def denoised(self, x: Tensor, alpha: Level, sigma: Level, condition: Tensor | None = None) -> Tensor:
        """Posterior mean E[x_0 | x_t = x], (B, d)."""
        offset, variance, log, a = self._parts(x, alpha, sigma)
        share = torch.softmax(log + self._allowed(condition, len(x)), dim=1)
        gained = torch.einsum("bke,kde->bkd", a * self.variances / variance * offset, self.axes)
        return torch.einsum("bk,bkd->bd", share, self.means + gained)

    def log_density(self, x: Tensor, alpha: Level, sigma: Level, condition: Tensor | None = None) -> Tensor:
        """log p_t(x), or log p_t(x | class) where there is a condition, (B,)."""
        _, _, log, _ = self._parts(x, alpha, sigma)
        return torch.logsumexp(log + self._allowed(condition, len(x)), dim=1)

    def score(self, x: Tensor, alpha: Level, sigma: Level, condition: Tensor | None = None) -> Tensor:
        """Gradient of `log_density`, (B, d), by Tweedie's formula; sigma > 0."""
        a, s = (_float64(v).reshape(-1, 1) for v in (alpha, sigma))
        return (a * self.denoised(x, alpha, sigma, condition) - x.double()) / s.square()

    def class_probability(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """p(class | x_t = x), (B, C): the exact noise-aware classifier."""
        _, _, log, _ = self._parts(x, alpha, sigma)
        share = torch.softmax(log, dim=1)
        return torch.zeros(len(x), self.classes, dtype=torch.float64).index_add(1, self.labels, share)

    def sample(self, count: int, generator: torch.Generator, condition: int = -1) -> Tensor:
        """Clean data, (count, d)."""
        weights = self.weights if condition < 0 else torch.where(self.labels == condition, self.weights, 0.0)
        k = torch.multinomial(weights, count, replacement=True, generator=generator)
        e = torch.randn(count, self.dimension, generator=generator, dtype=torch.float64)
        return self.means[k] + torch.einsum("bde,be->bd", self.axes[k], self.variances[k].clamp(min=0).sqrt() * e)


class Gaussian(Mixture):
    """One Gaussian: mean (d,), covariance (d, d). Its denoiser is affine in x."""

    def __init__(self, mean: Tensor | Sequence[float], covariance: Tensor | Sequence[Sequence[float]]):
        super().__init__([1.0], _float64(mean)[None], _float64(covariance)[None])


def g3() -> Mixture:
    """The two-dimensional reference mixture that the orders of the samplers are measured on; three classes."""
    return Mixture(
        weights=[0.4, 0.35, 0.25],
        means=[[1.2, 0.3], [-0.8, 0.9], [0.1, -1.3]],
        covariances=[[[0.25, 0.05], [0.05, 0.15]], [[0.1, -0.03], [-0.03, 0.3]], [[0.2, 0.0], [0.0, 0.12]]],
        labels=[0, 1, 2],
    )


def fractal_tree(levels: int = 7, seed: int = 2, deviation: float = 0.5) -> Mixture:
    """Two classes, each a tree of thin branches: the two-dimensional test bed of autoguidance.

    After Karras et al. 2024, arXiv 2406.02507, appendix C, with a random draw of our own, moved and scaled to mean
    zero and `deviation` on each axis. Classes start at the origin in opposite directions; a branch is 8 Gaussians.
    """
    rng = np.random.default_rng(seed)
    weights: list[float] = []
    means: list[np.ndarray] = []
    covariances: list[np.ndarray] = []
    labels: list[int] = []
    grown = [(0, np.zeros(2), math.pi / 4), (1, np.zeros(2), 5 * math.pi / 4)]
    for depth in range(levels):
        buds = []
        for label, start, angle in grown:
            along = np.asarray([math.cos(angle), math.sin(angle)])
            length = 0.292 * 0.8**depth * (1 + 0.2 * rng.standard_normal())
            thickness = 0.06 * 0.2 * 0.8**depth
            projector = np.outer(along, along)
            covariance = (0.06 * length) ** 2 * projector + thickness**2 * (np.eye(2) - projector)
            for share in np.linspace(0.07, 0.93, 8):
                weights.append(length * 0.5**depth)
                means.append(start + share * length * along)
                covariances.append(covariance)
                labels.append(label)
            for side in (1, -1):
                turn = side * 0.7**depth * (1 + 0.2 * rng.standard_normal())
                buds.append((label, start + length * along, angle + turn))
        grown = buds
    raw = Mixture(weights, np.stack(means), np.stack(covariances), labels)
    scale = deviation / raw.covariance().diagonal().sqrt()
    moved = (raw.means - raw.mean()) * scale
    return Mixture(raw.weights, moved, raw.covariances * scale[:, None] * scale, raw.labels)
