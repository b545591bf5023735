"""Distribution matching where everything is exact: teachers and students are mixtures of isotropic Gaussians, so both
scores and the ratio are known at every noise level. Runs of several divergences and seeds go side by side, as the first
axis R of all tensors; none sees another. x_t = x + sigma eps, weight sigma^2, float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pilotage.distill.divergences import Divergence

LEVELS, LEAST = 24, 0.05


def noise_levels(sigma_max: float) -> Tensor:
    """rho = 7 between 0.05 and sigma_max, (24,)."""
    ends = torch.tensor([LEAST, sigma_max]).double() ** (1 / 7)
    return (ends[0] + torch.linspace(0, 1, LEVELS).double() * (ends[1] - ends[0])) ** 7


@dataclass(frozen=True)
class Mixture:
    """means (..., K, d), variances (..., K), weights (K,): isotropic parts."""

    means: Tensor
    variances: Tensor
    weights: Tensor

    def told(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """log density (..., N) and score (..., N, d) at x (..., N, d), with noise sigma (..., N)."""
        variance = self.variances.unsqueeze(-2) + sigma.unsqueeze(-1) ** 2
        away = x.unsqueeze(-2) - self.means.unsqueeze(-3)
        log_parts = self.weights.log() - away.square().sum(-1) / (2 * variance)
        log_parts = log_parts - x.shape[-1] / 2 * (2 * math.pi * variance).log()
        log_density = log_parts.logsumexp(-1)
        share = (log_parts - log_density.unsqueeze(-1)).exp() / variance
        return log_density, -(share.unsqueeze(-1) * away).sum(-2)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, d)"""
        part = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[-1], generator=generator, dtype=torch.float64)
        return self.means[part] + self.variances[part].sqrt().unsqueeze(-1) * noise


def two_modes(dimensions: int, separation: float = 3.0) -> Mixture:
    """0.35 N(-separation, 1/4) + 0.65 N(separation, 1/4) along the first axis."""
    means = torch.zeros(2, dimensions).double()
    means[:, 0] = torch.tensor([-separation, separation])
    return Mixture(means, torch.full((2,), 0.25).double(), torch.tensor([0.35, 0.65]).double())


def ring() -> Mixture:
    """Eight equal modes of deviation 0.3 on a circle of radius 4."""
    angle = torch.arange(8).double() * math.pi / 4
    return Mixture(
        4 * torch.stack([angle.cos(), angle.sin()], 1),
        torch.full((8,), 0.09).double(),
        torch.full((8,), 0.125).double(),
    )


# -- one dimension, by quadrature --------------------------------------------------------------------------------------


def matched_by_quadrature(
    divergences: Sequence[Divergence], sigma_max: float, points: int, clip: tuple[float, float] | None = None
) -> Tensor:
    """Means and deviations (R, 2) of Gaussians N(m, s^2) that started at the minor mode of `two_modes`: m = -2.4,
    s = 0.5, 4000 Adam steps of 0.02, decaying to 0."""
    x, sigma = torch.linspace(-14, 14, points).double(), noise_levels(sigma_max)[:, None]
    log_p, score_p = two_modes(1).told(x[None, :, None].expand(LEVELS, -1, 1), sigma.expand(-1, points))
    score_p, dx = score_p[..., 0], float(x[1] - x[0])
    learnt = torch.tensor([-2.4, 0.5]).double().repeat(len(divergences), 1)
    first, second = torch.zeros_like(learnt), torch.zeros_like(learnt)
    for step in range(4000):
        m, s = learnt[:, 0, None, None], learnt[:, 1, None, None]
        variance, away = s**2 + sigma**2, x - m
        score_q = -away / variance
        log_q = away * score_q / 2 - (2 * math.pi * variance).log() / 2
        log_ratio = log_p - log_q
        if clip:
            log_ratio = log_ratio.clamp(math.log(clip[0]), math.log(clip[1]))
        h = torch.stack([divergence.weight(some) for divergence, some in zip(divergences, log_ratio)])
        weight = log_q.exp() * h * dx
        pull = weight * sigma**2 * (score_q - score_p)
        gradient = torch.stack([pull.sum((1, 2)), (pull * away * s / variance).sum((1, 2))], 1)
        gradient = gradient / weight.sum((1, 2))[:, None]
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient**2
        moved = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8)
        learnt = learnt - 0.02 * (1 - step / 4000) * moved
    return learnt


def left_mass(mean: Tensor, deviation: Tensor) -> Tensor:
    """P(N(mean, deviation^2) < 0)"""
    return (1 + torch.erf(-mean / deviation / math.sqrt(2))) / 2


# -- two dimensions, by samples ----------------------------------------------------------------------------------------


class Gaussians(nn.Module):
    """R students m + L z in the plane, at the minor mode of `two_modes`."""

    def __init__(self, runs: int):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([-2.4, 0.0]).double().repeat(runs, 1))
        self.root = nn.Parameter(0.5 * torch.eye(2).double().repeat(runs, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.mean[:, None] + z @ self.root.mT

    def told(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        values, axes = torch.linalg.eigh(self.root @ self.root.mT)
        variance = values[:, None] + sigma[..., None] ** 2
        away = (x - self.mean[:, None]) @ axes
        log_density = -((away**2 / variance) + (2 * math.pi * variance).log()).sum(-1) / 2
        return log_density, -(away / variance) @ axes.mT


class FourParts(nn.Module):
    """R students of four equal isotropic Gaussians, which start near the mode (4, 0) of `ring`."""

    def __init__(self, runs: int):
        super().__init__()
        near = torch.tensor([[0.3, 0.0], [0.0, 0.3], [-0.3, 0.0], [0.0, -0.3]]).double()
        self.means = nn.Parameter((torch.tensor([4.0, 0.0]).double() + near).repeat(runs, 1, 1))
        self.log_deviations = nn.Parameter(torch.full((runs, 4), math.log(0.3)).double())

    def forward(self, z: Tensor) -> Tensor:
        rows = z.shape[1] // 4
        return (
            self.means.repeat_interleave(rows, 1) + self.log_deviations.exp().repeat_interleave(rows, 1)[..., None] * z
        )

    def told(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return Mixture(self.means, (2 * self.log_deviations).exp(), torch.full((4,), 0.25).double()).told(x, sigma)


class Critic(nn.Module):
    """R discriminators 3-64-64-1 of (x_t / sqrt(1 + sigma^2), log sigma)."""

    def __init__(self, runs: int, generator: torch.Generator):
        super().__init__()
        sizes = [(3, 64), (64, 64), (64, 1)]
        drawn = [torch.randn(size, generator=generator).double() / size[0] ** 0.5 for size in sizes]
        self.weights = nn.ParameterList([w.repeat(runs, 1, 1) for w in drawn])
        self.biases = nn.ParameterList([torch.zeros(runs, 1, size[1]).double() for size in sizes])

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        h = torch.cat([x / (1 + sigma[..., None] ** 2).sqrt(), sigma.log()[..., None]], -1)
        for last, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            h = torch.baddbmm(bias, h, weight)
            h = nn.functional.silu(h) if last < 2 else h
        return h[..., 0]


@dataclass
class Draws:
    """Random numbers of some seeds, alike for all divergences: run r has seed r mod S."""

    generators: list[torch.Generator]
    divergences: int
    sigma_max: float
    rows: int = 512

    @classmethod
    def of(cls, seeds: Sequence[int], divergences: int, sigma_max: float = 2.0) -> Draws:
        return cls([torch.Generator().manual_seed(seed) for seed in seeds], divergences, sigma_max)

    def normal(self) -> Tensor:
        """(R, rows, 2)"""
        drawn = [torch.randn(self.rows, 2, generator=one, dtype=torch.float64) for one in self.generators]
        return torch.stack(drawn).repeat(self.divergences, 1, 1)

    def shares(self) -> Tensor:
        """Places in the time distribution (R, rows), uniform in [0, 1]."""
        drawn = [torch.rand(self.rows, generator=one, dtype=torch.float64) for one in self.generators]
        return torch.stack(drawn).repeat(self.divergences, 1)

    def sigma(self, shares: Tensor) -> Tensor:
        """Log-uniform from 0.05 to sigma_max."""
        return LEAST * (self.sigma_max / LEAST) ** shares

    def real(self, teacher: Mixture) -> Tensor:
        """(R, rows, 2)"""
        return torch.stack([teacher.sample(self.rows, one) for one in self.generators]).repeat(self.divergences, 1, 1)


@dataclass
class Seen:
    """spread: coefficient of variation of the weights (R,), of the last 100 steps. likeness: correlation (R,) of the
    critic's logit with the true log-ratio, both within 10."""

    spread: Tensor
    likeness: Tensor


class Weighing:
    """Weights from the exact ratio, mean 1 a run."""

    def __init__(self, divergences: Sequence[Divergence], seeds: int):
        self.divergences = [divergence for divergence in divergences for _ in range(seeds)]

    def weigh(self, log_ratio: Tensor, shares: Tensor) -> Tensor:
        h = torch.stack([one.weight(some) for one, some in zip(self.divergences, log_ratio)])
        return h / h.mean(1, keepdim=True)


def teach(critic: Critic, optimiser: torch.optim.Optimizer, made: Tensor, teacher: Mixture, draws: Draws) -> None:
    """A step of the discriminator, on noised rows of the student and of the teacher."""
    sigma, other = draws.sigma(draws.shares()), draws.sigma(draws.shares())
    fake = made.detach() + sigma[..., None] * draws.normal()
    real = draws.real(teacher) + other[..., None] * draws.normal()
    loss = softplus(critic(fake, sigma)).mean(1).sum() + softplus(-critic(real, other)).mean(1).sum()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def matched_by_samples(
    student: Gaussians | FourParts,
    teacher: Mixture,
    weighing: Weighing,
    draws: Draws,
    steps: int,
    critic: Critic | None = None,
) -> Seen:
    """Adam steps of 0.02 on batches of 512. With a critic, three steps of it before each; its logit is the ratio."""
    optimiser = torch.optim.Adam(student.parameters(), 0.02)
    teaching = torch.optim.Adam(critic.parameters() if critic else [torch.zeros(())], 2e-3)
    spreads, likeness = [], torch.zeros(())
    for step in range(steps):
        for _ in range(3 if critic else 0):
            teach(cast(Critic, critic), teaching, student(draws.normal()), teacher, draws)
        x, shares = student(draws.normal()), draws.shares()
        sigma = draws.sigma(shares)
        with torch.no_grad():
            noised = x + sigma[..., None] * draws.normal()
            (log_q, score_q), (log_p, score_p) = student.told(noised, sigma), teacher.told(noised, sigma)
            log_ratio = log_p - log_q
            if critic:
                logit = critic(noised, sigma).clamp(-10, 10)
                pairs = torch.stack([log_ratio.clamp(-10, 10), logit], 1)
                likeness, log_ratio = torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs]), logit
            h = weighing.weigh(log_ratio, shares)
            pull = (h * sigma**2)[..., None] * (score_q - score_p)
        optimiser.zero_grad()
        (pull * x).sum(-1).mean(1).sum().backward()  # the sum over runs leaves each run its own gradient
        optimiser.step()
        if step >= steps - 100:
            spreads.append(h.std(1) / h.mean(1))
    return Seen(torch.stack(spreads).mean(0), likeness)


@dataclass
class OnRing:
    """Of R students, (R,) each. modes: that are the nearest of a quarter of their fair share of 8192 pictures or more.
    precision: share within three deviations of a mode. surprise: mean -log q of teacher samples. reverse: KL(q, p)."""

    modes: Tensor
    precision: Tensor
    surprise: Tensor
    reverse: Tensor


@torch.no_grad()
def looked_at(student: FourParts, teacher: Mixture, pictures: int = 8192) -> OnRing:
    generator = torch.Generator().manual_seed(0)
    runs, none = len(student.means), torch.zeros(1, 1).double()
    x = student(torch.randn(runs, pictures, 2, generator=generator, dtype=torch.float64))
    away = torch.cdist(x, teacher.means.expand(runs, -1, -1))
    nearest = nn.functional.one_hot(away.argmin(2), len(teacher.means)).double().mean(1)
    real = teacher.sample(pictures, generator).expand(runs, -1, -1)
    log_q, log_p = student.told(x, none)[0], teacher.told(x, none)[0]
    return OnRing(
        (nearest >= 1 / 32).sum(1),
        (away < 3 * teacher.variances.sqrt()).any(2).double().mean(1),
        -student.told(real, none)[0].mean(1),
        (log_q - log_p).mean(1),
    )
