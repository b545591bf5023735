"""Teleportation: the first steps of a run in closed form.

At high noise every data set looks like a Gaussian with its mean and covariance, and for a Gaussian the probability-flow
ODE is solved. With data N(mu, C), C = U diag(l) U^T, the exact map between any two levels s -> t of any schedule is

    x_t = alpha_t mu + U diag(sqrt((alpha_t^2 l + sigma_t^2) / (alpha_s^2 l + sigma_s^2))) U^T (x_s - alpha_s mu)

So x jumps from the grid's first level to a later one, and the sampler does the rest on the levels that are left:

    gaussian = GaussianMap.fit(latents, model="my model")           # of data, or of the model's own samples
    x, levels = teleported(x, make_grid("karras", schedule, 25), gaussian, rho=8.0)
    x0 = sample(denoiser, x, grid=levels)                           # any sampler

With a diffusers pipeline: `latents=x` and the grid line "karras + clip:high=8". How far one may jump is scanned by
`skip_level`: the lowest noise at which the Gaussian still predicts what the network does.

Guidance moves the mean. With classifier-free guidance and Gaussians of *equal* covariance the guided mean is
mu_w = mu_n + w (mu_c - mu_n), `shifted_mean`; with unequal ones it is weighted by precisions, the covariance changes
too, and there is no law for it here. A network that is asked once at the first level tells the mean of its condition
by itself, guided or not: `with_mean_of`.

Source: Wang & Vastola 2024, arXiv 2412.09726.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UsageError
from ..storage import disk_errors, whole
from .prediction import SAMPLE, Prediction
from .sampler import Levels
from .schedule import Level

_RANK = 256  # of a fit that is not told: no more directions than data can bear are kept anyway


@dataclass(frozen=True, eq=False)
class GaussianMap:
    """Data N(mean, U diag(variances) U^T) in the space of the state.

    mean: (*shape), or (B, *shape) where each row has its own. directions: U, (S, r) with orthonormal columns,
    S = prod(shape). variances: (r,), the eigenvalues l; outside the r directions they are `rest` (0 in a low-rank
    covariance, or the mean of the left-out ones). model, rule: what it was fitted to, the rule by its line. landing:
    the rho down to which a run may be moved, where that was scanned.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor
    rest: float = 0.0
    model: str = ""
    rule: str = ""
    landing: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one picture's state."""
        shape: list[int] = []
        size = 1
        for length in reversed(self.mean.shape):
            if size == self.directions.shape[0]:
                break
            shape.insert(0, length)
            size *= length
        return tuple(shape)

    @property
    def spread(self) -> float:
        """sqrt(trace C)."""
        left = self.directions.shape[0] - len(self.variances)
        return math.sqrt(float(self.variances.sum()) + left * self.rest)

    @staticmethod
    def fit(data: Tensor, rank: int | None = None, model: str = "", rest: bool = True) -> GaussianMap:
        """From (N, *shape) latents, in float64. rank: how many principal directions are kept, at most N - 1, the
        default 256. rest: give the directions left out their mean variance, not 0."""
        if len(data) < 2:
            raise UsageError("a Gaussian needs at least 2 latents to be fitted to; some hundreds are better")
        flat = data.detach().cpu().double().flatten(1)
        count, size = flat.shape
        mean = flat.mean(0)
        kept = min(_RANK if rank is None else rank, size, count - 1)
        if kept < 1:
            raise UsageError(f"rank={rank} must be at least 1")
        _, singular, basis = torch.linalg.svd(flat - mean, full_matrices=False)
        variances = singular**2 / (count - 1)
        left = float(variances[kept:].sum()) / (size - kept) if rest and size > kept else 0.0
        return GaussianMap(mean.reshape(data.shape[1:]), basis[:kept].T.contiguous(), variances[:kept], left, model)

    @staticmethod
    def of(mean: Tensor, covariance: Tensor, model: str = "") -> GaussianMap:
        """From a mean (*shape) and a covariance (S, S)."""
        values, vectors = torch.linalg.eigh(covariance)
        return GaussianMap(mean, vectors, values.clamp(min=0), model=model)

    # -- the maps ----------------------------------------------------------------------------------------------------

    def move(self, x: Tensor, start: Level, goal: Level) -> Tensor:
        """x (B, *shape) at `start` to where the probability-flow ODE brings it at `goal`; noisier or cleaner. Both need
        not lie on one schedule."""
        centred = self._flat(x) - start.alpha * self._mean(x)
        keep = self._ratio(self.rest, start, goal)
        gains = torch.tensor([self._ratio(v, start, goal) for v in self.variances.tolist()], dtype=torch.float64) - keep
        moved = goal.alpha * self._mean(x) + centred * keep + self._along(centred, gains)
        return moved.reshape(x.shape).to(x.dtype)

    def denoised(self, x: Tensor, alpha: float, sigma: float, condition: object = None) -> Tensor:
        """The Gaussian's posterior mean, mu + alpha C (alpha^2 C + sigma^2)^{-1} (x - alpha mu): a world for
        `ExactDenoiser`."""
        centred = self._flat(x) - alpha * self._mean(x)
        found = self._mean(x) + self._posterior(centred, alpha, sigma)
        return found.reshape(x.shape).to(x.dtype)

    def with_mean_of(self, prediction: Prediction) -> GaussianMap:
        """The same covariance around the means, one a row, for which the Gaussian predicts what the network did:
        with K = alpha C (alpha^2 C + sigma^2)^{-1}, mu = (1 - alpha K)^{-1} (denoised - K x).

        prediction: at the level where the jump begins. The mean of a caption, and of a guided model, without a fit."""
        level, x = prediction.level, prediction.x
        if level.sigma <= 0:
            raise UsageError("clean data says nothing of a mean; take a prediction at the first level")
        found = self._flat(prediction.denoised) - self._posterior(self._flat(x), level.alpha, level.sigma)

        def undo(variance: float) -> float:  # 1 / (1 - alpha K), written without a difference
            return 1 + level.alpha**2 * variance / level.sigma**2

        keep = undo(self.rest)
        gains = torch.tensor([undo(v) for v in self.variances.tolist()], dtype=torch.float64) - keep
        mean = found * keep + self._along(found, gains)
        return replace(self, mean=mean.reshape(x.shape))

    def shifted_mean(self, conditional: Tensor, scale: float) -> GaussianMap:
        """Mean mu + scale (conditional - mu): what classifier-free guidance makes of two Gaussians with this one's
        covariance both. conditional: (*shape) or (B, *shape)."""
        return replace(self, mean=self.mean + scale * (conditional.to(self.mean) - self.mean))

    def _ratio(self, variance: float, start: Level, goal: Level) -> float:
        before = start.alpha**2 * variance + start.sigma**2
        if before <= 0:
            return 0.0  # a point of a low-rank Gaussian has no other place to go
        return math.sqrt((goal.alpha**2 * variance + goal.sigma**2) / before)

    def _posterior(self, centred: Tensor, alpha: float, sigma: float) -> Tensor:
        def gain(variance: float) -> float:
            power = alpha**2 * variance + sigma**2
            return alpha * variance / power if power > 0 else 0.0

        keep = gain(self.rest)
        gains = torch.tensor([gain(v) for v in self.variances.tolist()], dtype=torch.float64) - keep
        return centred * keep + self._along(centred, gains)

    def _along(self, flat: Tensor, gains: Tensor) -> Tensor:
        """U diag(gains) U^T of each row."""
        basis = self.directions.to(flat)
        return (flat @ basis * gains.to(flat)) @ basis.T

    def _flat(self, x: Tensor) -> Tensor:
        size = self.directions.shape[0]
        if x[0].numel() != size:
            raise UsageError(
                f"this Gaussian is one of {size} numbers a picture, not {x[0].numel()}; fit it to this size"
            )
        return x.double().flatten(1)

    def _mean(self, x: Tensor) -> Tensor:
        """(1 or B, S) on the device of x."""
        return self.mean.to(x.device).double().reshape(-1, self.directions.shape[0])

    # -- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """As safetensors."""
        from safetensors.torch import save_file

        tensors = {n: getattr(self, n).contiguous().clone() for n in ("mean", "directions", "variances")}
        about = {"model": self.model, "rule": self.rule, "rest": repr(self.rest), "format": "pilotage gaussian"}
        about |= {} if self.landing is None else {"landing": repr(float(self.landing))}
        with disk_errors(Path(path).parent), whole(Path(path)) as part:
            save_file(tensors, str(part), about)

    @staticmethod
    def load(path: str | Path, model: str = "") -> GaussianMap:
        """model: what is run now; UsageError where the file was fitted to another one."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "pt") as file:
                about = file.metadata() or {}
                if about.get("format") != "pilotage gaussian":
                    raise UsageError(f"{path} holds no Gaussian map; write one with GaussianMap.fit(latents).save")
                tensors = {name: file.get_tensor(name) for name in ("mean", "directions", "variances")}
            landing = float(about["landing"]) if "landing" in about else None
            rest, fitted = float(about["rest"]), about["model"]
        except OSError as error:
            why = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror or error
            raise UsageError(f"cannot read the Gaussian map {path}: {why}; write one with fit-teleport") from None
        except UsageError:
            raise
        except (SafetensorError, KeyError, ValueError):
            raise UsageError(f"{path} is no safetensors file of a Gaussian map") from None
        if model and fitted and model != fitted:
            raise UsageError(f"{path} was fitted to {fitted!r}, not {model!r}; fit it again")
        return GaussianMap(**tensors, rest=rest, model=fitted, rule=about.get("rule", ""), landing=landing)


def teleported(
    x: Tensor, levels: Levels, gaussian: GaussianMap, rho: float | None = None, first: int | None = None
) -> tuple[Tensor, Levels]:
    """x (B, ...) moved from levels[0] to the level where the run now begins, and the levels that are left: those with
    noise up to `rho`, or all but the first `first`. The rest of the grid is as it was."""
    if (rho is None) == (first is None):
        raise UsageError(
            "say how far to jump: rho= the noise where to arrive, or first= the number of steps to leave out"
        )
    if rho is not None:
        first = sum(level.rho > rho for level in levels)
    assert first is not None
    if not 0 <= first < len(levels) - 1:
        raise UsageError(f"a jump over {first} of {len(levels) - 1} steps leaves none; arrive at a higher rho")
    return gaussian.move(x, levels[0], levels[first]), levels[first:]


def relative_errors(
    denoise: Callable[[Tensor, Level], Tensor],
    gaussian: GaussianMap,
    data: Tensor,
    noise: Tensor,
    levels: Sequence[Level],
) -> list[float]:
    """How far the Gaussian's denoised value lies from the network's at each level, in deviations of the data: the mean
    over rows of |D_gauss - D_net| / sqrt(trace C) on forward-noised data. (|D_net| itself would be a poor measure: it
    vanishes at high noise where the mean does.)

    denoise(x, level): the network's denoised value. data, noise: (N, *shape), noise of unit variance."""
    found = []
    for level in levels:
        x = level.alpha * data + level.sigma * noise
        told = denoise(x, level)
        away = (gaussian.denoised(x, level.alpha, level.sigma) - told).flatten(1).norm(dim=1)
        found.append(float(away.mean()) / gaussian.spread)
    return found


def skip_level(errors: Sequence[float], levels: Sequence[Level], tolerance: float = 0.02) -> Level:
    """The lowest noise down to which every error is below `tolerance`, of `levels` from noisy to clean. The first level
    where there is none."""
    good = levels[0]
    for error, level in zip(errors, levels, strict=True):
        if not error < tolerance:
            break
        good = level
    return good


def as_prediction(x: Tensor, level: Level, denoised: Tensor) -> Prediction:
    """A denoised value as what `with_mean_of` takes."""
    return Prediction(x, level, denoised, SAMPLE)
