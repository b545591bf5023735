"""Neural-network divergence: how well a small critic, trained afresh, tells generated from held-out real pictures.

Gulrajani, Raffel & Metz, Towards GAN Benchmarks Which Require Generalization. A critic f of a fixed family maximises

    E_real f(x) - E_generated f(x) - penalty E (|grad f(x')| - 1)^2,   x' between a real and a generated point

(Gulrajani et al. 2017, 1704.00028, equation 3) on some rows; the divergence is its gap E_real f - E_generated f on
others. A copy of the training set has few different rows, which a critic learns and finds again: it scores worse than
a generator that generalises. Two more critics, trained alike, give the scale:

    floor: held-out real rows in the role of the generated       0 of the scale, what chance gives
    copier: draws from the training set in that role             1 of the scale, what memorising gives
    ratio = (model - floor) / (copier - floor)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import UsageError
from ..arrays import as_features, as_pictures, as_tensor, same_width


@dataclass(frozen=True)
class CriticSettings:
    """steps of Adam on `batch` rows of each side. The gap is the mean over `checkpoints` in the last half.

    width: of the hidden layers; for pictures, of the first of three convolutions.
    """

    steps: int = 1000
    batch: int = 64
    width: int = 32
    learning_rate: float = 1e-3
    penalty: float = 10.0
    checkpoints: int = 5

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.width, self.checkpoints) < 1 or self.penalty < 0:
            raise UsageError("a critic needs steps, batch, width and checkpoints of 1 or more; use CriticSettings()")


@dataclass(frozen=True)
class NetworkDivergence:
    """Gaps on fresh rows, one a seed, and what follows; in units of the scaled inputs.

    value: mean gap of the model. ratio: 0 for real pictures, 1 for copies of the training set; nan where the copier's
    gap is not above the floor by two standard errors, since then the scale means nothing: take a longer training, or
    fewer training pictures. ratio_error: by leaving out one seed at a time; seeds change the rows as well as weights.
    """

    model: tuple[float, ...]
    floor: tuple[float, ...]
    copier: tuple[float, ...]
    rows: int  # on each side of each critic, for training, and as many for its gap
    n_train: int
    settings: CriticSettings
    seeds: tuple[int, ...]

    @property
    def value(self) -> float:
        return float(np.mean(self.model))

    @property
    def null(self) -> float:
        """The mean floor."""
        return float(np.mean(self.floor))

    @property
    def standard_error(self) -> float:
        """Of the model's mean gap over seeds."""
        return _error(self.model)

    @property
    def ratio(self) -> float:
        above = np.subtract(self.copier, self.floor)
        return _ratio(self.model, self.floor, self.copier) if above.mean() > 2 * _error(above) else math.nan

    @property
    def ratio_error(self) -> float:
        if math.isnan(self.ratio):
            return math.nan
        n = len(self.seeds)
        without = [_ratio(*(np.delete(gaps, i) for gaps in (self.model, self.floor, self.copier))) for i in range(n)]
        return float(np.std(without)) * math.sqrt(n - 1)


def network_divergence(
    *,
    train: Any,
    held_out: Any,
    generated: Any,
    settings: CriticSettings | None = None,
    seeds: Sequence[int] = (0, 1, 2),
) -> NetworkDivergence:
    """Divergence of generated pictures from held-out ones, on a scale from real (0) to copied training pictures (1).

    All three: uint8 pictures (N, 3, H, W) or (N, H, W, 3) of one size, or features (N, D). held_out: pictures that the
    generator never saw, 8 or more; they are split in four, two for the real side and two for the floor. train: what it
    was trained on. generated: 4 or more. n = min(held_out // 4, generated // 2) rows train a critic and n others judge
    it; the copier's rows are drawn from the training set with replacement.

    Three critics a seed, 3 or more seeds: minutes for 32 x 32 pictures. Deterministic by the seeds, on one machine.
    """
    settings = CriticSettings() if settings is None else settings
    if len(set(seeds)) < 3:
        raise UsageError(f"seeds={tuple(seeds)} are too few to show their spread; give 3 different ones or more")
    sets = {"train": train, "held_out": held_out, "generated": generated}
    rows = {name: _inputs(values, name) for name, values in sets.items()}
    same_width(rows["held_out"].flatten(1), rows["train"].flatten(1))
    same_width(rows["held_out"].flatten(1), rows["generated"].flatten(1))
    n = min(len(rows["held_out"]) // 4, len(rows["generated"]) // 2)
    if n < 2:
        raise UsageError("too few pictures for a critic; give 8 held-out and 4 generated ones at least, better 1000s")
    gaps = [_gaps(rows, n, settings, seed) for seed in seeds]
    model, floor, copier = (tuple(row) for row in zip(*gaps, strict=True))
    return NetworkDivergence(model, floor, copier, n, len(rows["train"]), settings, tuple(seeds))


def _gaps(rows: dict[str, Tensor], n: int, settings: CriticSettings, seed: int) -> list[float]:
    """Of model, floor and copier: the same real rows, weights and batches for all three."""
    rng = np.random.default_rng(seed)
    real, real_fresh, other, other_fresh = _taken(rows["held_out"], rng.permutation(len(rows["held_out"])), n, 4)
    made = _taken(rows["generated"], rng.permutation(len(rows["generated"])), n, 2)
    copied = _taken(rows["train"], rng.integers(0, len(rows["train"]), 2 * n), n, 2)
    scale = _scale(real)
    found = []
    for fake, fake_fresh in (made, [other, other_fresh], copied):
        parts = [scale(part) for part in (real, fake, real_fresh, fake_fresh)]
        found.append(critic_gap(*parts, settings=settings, seed=seed))
    return found


def critic_gap(
    real: Tensor, fake: Tensor, real_fresh: Tensor, fake_fresh: Tensor, *, settings: CriticSettings, seed: int
) -> float:
    """Train a critic on float32 `real` and `fake`, and its mean gap on the fresh rows at the last checkpoints."""
    with torch.random.fork_rng(devices=[]):  # initialisers know no other generator
        torch.manual_seed(seed)
        critic = _critic(real.shape[1:], settings.width).to(real.device)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(critic.parameters(), settings.learning_rate, betas=(0.5, 0.9))
    first = settings.steps // 2
    measured = {
        settings.steps - (settings.steps - first) * i // settings.checkpoints for i in range(settings.checkpoints)
    }
    gaps = []
    for step in range(1, settings.steps + 1):
        with torch.enable_grad():
            a, b = (_batch(rows, settings.batch, generator) for rows in (real, fake))
            gap = critic(a).mean() - critic(b).mean()
            loss = settings.penalty * _penalty(critic, a, b, generator) - gap
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if step in measured:
            gaps.append(_mean(critic, real_fresh) - _mean(critic, fake_fresh))
    return sum(gaps) / len(gaps)


def _penalty(critic: nn.Module, a: Tensor, b: Tensor, generator: torch.Generator) -> Tensor:
    t = torch.rand(len(a), *[1] * (a.ndim - 1), generator=generator).to(a.device)
    between = (t * a + (1 - t) * b).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def _critic(shape: torch.Size, width: int) -> nn.Module:
    """The fixed family: two hidden layers for features; three strided convolutions and a hidden layer for pictures."""
    layers: list[nn.Module] = []
    if len(shape) == 1:
        layers += [nn.Linear(shape[0], 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width), nn.SiLU()]
    else:
        for channels, out in zip((shape[0], width, 2 * width), (width, 2 * width, 2 * width), strict=True):
            layers += [nn.Conv2d(channels, out, 3, 2, 1), nn.SiLU()]
        height, across = (math.ceil(side / 8) for side in shape[1:])
        layers += [nn.Flatten(), nn.Linear(2 * width * height * across, 2 * width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(2 * width, 1))


def _inputs(values: Any, name: str) -> Tensor:
    """Features (N, D), or pictures as uint8 (N, 3, H, W)."""
    return as_pictures(values) if as_tensor(values).ndim == 4 else as_features(values, name)


def _taken(rows: Tensor, order: np.ndarray, n: int, parts: int) -> list[Tensor]:
    return list(rows[torch.from_numpy(order[: n * parts]).to(rows.device)].split(n))


def _scale(real: Tensor) -> Any:
    """Pictures to -1..1; features over the spread of the real rows, which is then 1 a dimension on average."""
    if real.dtype == torch.uint8:
        return lambda rows: rows.float() / 127.5 - 1
    mean = real.double().mean(0)
    spread = (real.double() - mean).square().mean().sqrt().clamp(min=1e-30)
    return lambda rows: ((rows.double() - mean) / spread).float()


def _batch(rows: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randint(len(rows), (size,), generator=generator).to(rows.device)]


@torch.no_grad()
def _mean(critic: nn.Module, rows: Tensor) -> float:
    return float(torch.cat([critic(part) for part in rows.split(512)]).double().mean())


def _ratio(model: Any, floor: Any, copier: Any) -> float:
    return float((np.mean(model) - np.mean(floor)) / (np.mean(copier) - np.mean(floor)))


def _error(values: Any) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))
