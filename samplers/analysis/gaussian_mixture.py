"""A mixture of Gaussians with full covariances, fitted by expectation and maximisation, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UsageError
from ..noise import derived_seed


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """weights (K,), means (K, d), and the Cholesky factors (K, d, d) of the covariances."""

    weights: Tensor
    means: Tensor
    factors: Tensor

    def log_density(self, points: Tensor) -> Tensor:
        """(N,), in nats, of points (N, d)."""
        return torch.logsumexp(self._joint(points), dim=1)

    def _joint(self, points: Tensor) -> Tensor:
        """Log density of each point together with each component, (N, K)."""
        apart = points.double()[None] - self.means[:, None]  # (K, N, d)
        white = torch.linalg.solve_triangular(self.factors, apart.transpose(1, 2), upper=False)
        logdet = self.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        log = -(white.square().sum(1) + points.shape[1] * math.log(2 * math.pi)) / 2 - logdet[:, None]
        return (log + self.weights.log()[:, None]).T

    def shares(self, points: Tensor) -> Tensor:
        """Posterior probability of each component, (N, K)."""
        return torch.softmax(self._joint(points), dim=1)


def from_shares(points: Tensor, shares: Tensor, ridge: float) -> GaussianMixture:
    """The maximisation step: weighted moments; `ridge` is added to the variances."""
    mass = shares.sum(0) + 10 * torch.finfo(torch.float64).eps
    means = shares.T @ points / mass[:, None]
    apart = points[None] - means[:, None]
    covariance = torch.einsum("nk,kni,knj->kij", shares, apart, apart) / mass[:, None, None]
    ridged = covariance + ridge * torch.eye(points.shape[1], dtype=points.dtype)
    return GaussianMixture(mass / mass.sum(), means, torch.linalg.cholesky(ridged))


def fit_mixture(
    points: Tensor,
    components: int,
    *,
    seed: int = 0,
    restarts: int = 5,
    iterations: int = 200,
    tolerance: float = 1e-6,
    ridge: float = 1e-6,
) -> GaussianMixture:
    """The most likely of several fits of points (N, d), each from seeded distant centres (k-means++)."""
    points = points.detach().double().cpu()
    if components < 1 or len(points) < 2 * components:
        raise UsageError(f"{components} components want at least {2 * max(1, components)} points, not {len(points)}")
    best, score = None, -math.inf
    for restart in range(restarts):
        generator = torch.Generator("cpu").manual_seed(derived_seed(seed, "mixture", restart))
        nearest = torch.cdist(points, _centres(points, components, generator)).argmin(1)
        shares = torch.nn.functional.one_hot(nearest, components).double()
        mixture = polish(from_shares(points, shares, ridge), points, iterations, tolerance, ridge)
        found = mixture.log_density(points).mean().item()
        if best is None or found > score:
            best, score = mixture, found
    assert best is not None
    return best


def polish(
    mixture: GaussianMixture, points: Tensor, iterations: int, tolerance: float, ridge: float
) -> GaussianMixture:
    """EM from a given mixture until the mean log density gains less than the tolerance."""
    before = -math.inf
    for _ in range(iterations):
        joint = mixture._joint(points)
        now = torch.logsumexp(joint, dim=1).mean().item()
        if now - before < tolerance:
            break
        before = now
        mixture = from_shares(points, torch.softmax(joint, dim=1), ridge)
    return mixture


def choose_components(
    points: Tensor, candidates: Sequence[int] = tuple(range(2, 21, 2)), *, folds: int = 10, seed: int = 0
) -> int:
    """The number of components with the best log density on held-out folds; one fit a fold."""
    points = points.detach().double().cpu()
    if len(points) < 2 * folds:
        raise UsageError(f"{folds} folds want at least {2 * folds} points, not {len(points)}")
    generator = torch.Generator("cpu").manual_seed(derived_seed(seed, "folds"))
    fold = torch.randperm(len(points), generator=generator) % folds

    def held_out(components: int) -> float:
        parts = []
        for k in range(folds):
            mixture = fit_mixture(points[fold != k], components, seed=seed, restarts=1)
            parts.append(mixture.log_density(points[fold == k]))
        return float(torch.cat(parts).mean())

    return max(candidates, key=held_out)


def _centres(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Each further centre is drawn with a probability that grows with its squared distance from those drawn before."""
    chosen = points[torch.randint(len(points), (1,), generator=generator)]
    while len(chosen) < count:
        squares = torch.cdist(points, chosen).amin(1).square().clamp(min=1e-300)
        chosen = torch.cat([chosen, points[torch.multinomial(squares, 1, generator=generator)]])
    return chosen
