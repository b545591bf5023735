"""The one scheduler interface: how much signal and noise there is at each time.

A `NoiseSchedule` is pure and stateless. With x_t = alpha_t x_0 + sigma_t noise, time runs *up* towards noise and

    lam = log(alpha / sigma)     half log signal-to-noise ratio; falls with t, rises while sampling
    rho = sigma / alpha          noise level in data units (the "sigma" of EDM); infinite where alpha = 0

Guidance, samplers, adjoint solvers, trainers and evaluation all take this class; nothing else knows what a beta is.
All methods accept tensors of any shape, work in float64 and are differentiable.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ..errors import UsageError


@dataclass(frozen=True)
class Level:
    """A point of a schedule: what the network is told (`time`), and how much signal and noise `x` holds.

    alpha, sigma: floats >= 0, so that no step of a sampler reads from the device.
    """

    time: float
    alpha: float
    sigma: float

    @property
    def rho(self) -> float:
        """Noise level sigma / alpha in data units; infinite at alpha = 0."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf

    @property
    def lam(self) -> float:
        """Half log signal-to-noise ratio; -inf at alpha = 0, +inf at sigma = 0."""
        if self.alpha <= 0:
            return -math.inf
        return math.log(self.alpha / self.sigma) if self.sigma > 0 else math.inf


def as_time(t: Any) -> Tensor:
    """A number, list or tensor as float64 (schedules live on the CPU)."""
    return t.double() if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64)


class NoiseSchedule(ABC):
    """alpha(t), sigma(t) and everything that follows from them."""

    t_min: float = 0.0  # cleanest usable time
    T: float = 1.0  # noisiest usable time

    @abstractmethod
    def alpha(self, t: Any) -> Tensor:
        """Weight of the clean signal in x_t."""

    @abstractmethod
    def sigma(self, t: Any) -> Tensor:
        """Weight of the unit noise in x_t."""

    @abstractmethod
    def t_of_lam(self, lam: Any) -> Tensor:
        """Inverse of `lam`; clipped to the usable range where the schedule ends."""

    @abstractmethod
    def f(self, t: Any) -> Tensor:
        """Drift d log(alpha) / dt."""

    @abstractmethod
    def dlam(self, t: Any) -> Tensor:
        """d lam / dt (negative)."""

    @staticmethod
    def from_scheduler(scheduler: Any) -> NoiseSchedule:
        """The schedule of any diffusers scheduler; see the function `from_scheduler` below."""
        return from_scheduler(scheduler)

    def model_time(self, t: Any) -> Tensor:
        """The number that is handed to the network for time t."""
        return as_time(t)

    def lam(self, t: Any) -> Tensor:
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def rho(self, t: Any) -> Tensor:
        return self.sigma(t) / self.alpha(t)

    def snr(self, t: Any) -> Tensor:
        return (self.alpha(t) / self.sigma(t)) ** 2

    def t_of_rho(self, rho: Any) -> Tensor:
        return self.t_of_lam(-torch.log(as_time(rho)))

    def g2(self, t: Any) -> Tensor:
        """Squared diffusion coefficient, -2 sigma^2 dlam/dt (Kingma et al. 2021, arXiv 2107.00630, eq. 17)."""
        return -2 * self.sigma(t) ** 2 * self.dlam(t)

    def dalpha(self, t: Any) -> Tensor:
        return self.alpha(t) * self.f(t)

    def dsigma(self, t: Any) -> Tensor:
        """From lam = log alpha - log sigma."""
        return self.sigma(t) * (self.f(t) - self.dlam(t))

    @property
    def lam_min(self) -> float:
        return float(self.lam(self.T))

    @property
    def lam_max(self) -> float:
        return float(self.lam(self.t_min))

    def levels(self, times: Any) -> tuple[Level, ...]:
        """The levels of a list of times."""
        t = as_time(times)
        return tuple(map(Level, self.model_time(t).tolist(), self.alpha(t).tolist(), self.sigma(t).tolist()))

    def level(self, t: float) -> Level:
        return self.levels([float(t)])[0]

    def levels_of_rho(self, rhos: Any) -> tuple[Level, ...]:
        """The levels with these noises, each above 0."""
        return self.levels(self.t_of_rho(rhos))

    def level_of_rho(self, rho: float) -> Level:
        """The level with noise `rho`; rho = 0 is clean data, whose time no network is asked about."""
        return self.levels_of_rho([float(rho)])[0] if rho > 0 else self.clean

    @property
    def clean(self) -> Level:
        """Data without noise: where every grid ends."""
        return Level(float(self.model_time(self.t_min)), 1.0, 0.0)


class VariancePreserving(NoiseSchedule):
    """alpha^2 + sigma^2 = 1, so that lam alone fixes both."""

    def f(self, t: Any) -> Tensor:
        return self.sigma(t) ** 2 * self.dlam(t)


NEARLY_PURE = 2.0**-24  # the last alphas_cumprod that diffusers' rho-based schedulers take for zero terminal SNR


class DiscreteVP(VariancePreserving):
    """A table of betas, as in DDPM and Stable Diffusion. Time is the index k in [0, K - 1], real-valued.

    alphas_cumprod: (K,) products of 1 - beta. Between the nodes log rho is linear in k. If the last entry is zero (zero
    terminal signal-to-noise ratio), k = K - 1 is pure noise, alpha = 0; the times just below it approach rho = 4096.
    """

    def __init__(self, alphas_cumprod: Any):
        power = as_time(alphas_cumprod).detach().cpu()
        self.T = float(len(power) - 1)
        self.ends_in_noise = float(power[-1]) <= 0
        power = power.clamp(min=NEARLY_PURE) if self.ends_in_noise else power
        self.log_rhos = (torch.log1p(-power) - power.log()) / 2  # of the nodes, rising, all finite

    def _log_rho(self, t: Any) -> Tensor:
        t = as_time(t).clamp(0, self.T)
        low = t.detach().floor().clamp(max=self.T - 1).long()
        value = self.log_rhos[low] + (t - low) * (self.log_rhos[low + 1] - self.log_rhos[low])
        return torch.where(t >= self.T, torch.inf, value) if self.ends_in_noise else value

    def lam(self, t: Any) -> Tensor:
        return -self._log_rho(t)

    def alpha(self, t: Any) -> Tensor:
        return torch.exp(logsigmoid(-2 * self._log_rho(t)) / 2)

    def sigma(self, t: Any) -> Tensor:
        return torch.exp(logsigmoid(2 * self._log_rho(t)) / 2)

    def dlam(self, t: Any) -> Tensor:
        low = as_time(t).detach().clamp(0, self.T).floor().clamp(max=self.T - 1).long()
        return self.log_rhos[low] - self.log_rhos[low + 1]

    def t_of_lam(self, lam: Any) -> Tensor:
        """Linear interpolation of k in log rho, clipped to the ends of the table."""
        wanted = -as_time(lam)
        high = torch.searchsorted(self.log_rhos, wanted.detach().contiguous()).clamp(1, int(self.T))
        a, b = self.log_rhos[high - 1], self.log_rhos[high]
        return high - 1 + ((wanted - a) / (b - a)).clamp(0, 1)

    def levels_of_rho(self, rhos: Any) -> tuple[Level, ...]:
        """Beyond the ends of the table only the time is clipped, as diffusers does with `sigmas=`."""
        rho = as_time(rhos)
        alpha, sigma = torch.rsqrt(1 + rho**2), torch.rsqrt(1 + rho**-2)
        return tuple(map(Level, self.t_of_rho(rho).tolist(), alpha.tolist(), sigma.tolist()))


class LinearVP(VariancePreserving):
    """Continuous VP with beta(t) = b0 + (b1 - b0) t on t in [0, 1] (Song et al. 2021, arXiv 2011.13456, eq. 32)."""

    t_min = 1e-4

    def __init__(self, b0: float = 0.1, b1: float = 20.0):
        self.b0, self.b1 = b0, b1

    def _log_alpha(self, t: Any) -> Tensor:
        t = as_time(t)
        return -(self.b1 - self.b0) * t**2 / 4 - self.b0 * t / 2

    def alpha(self, t: Any) -> Tensor:
        return self._log_alpha(t).exp()

    def sigma(self, t: Any) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def f(self, t: Any) -> Tensor:
        return -(self.b0 + (self.b1 - self.b0) * as_time(t)) / 2

    def dlam(self, t: Any) -> Tensor:
        return self.f(t) / self.sigma(t) ** 2

    def t_of_lam(self, lam: Any) -> Tensor:
        q = 2 * (self.b1 - self.b0) * softplus(-2 * as_time(lam))
        return q / (((self.b0**2 + q).sqrt() + self.b0) * (self.b1 - self.b0))

    def model_time(self, t: Any) -> Tensor:
        return 1000 * as_time(t)


class CosineVP(VariancePreserving):
    """alpha = cos(a(t)) / cos(a(0)) with a(t) = (pi / 2) (t + s) / (1 + s) on t in [0, 0.9946]: the continuous form of
    the cosine schedule (Nichol & Dhariwal 2021, arXiv 2102.09672). alpha would be 0 at t = 1; the end is that of common
    practice."""

    t_min, T = 1e-4, 0.9946

    def __init__(self, s: float = 0.008):
        self.s = s
        self._first = self._angle(0.0)

    def _angle(self, t: Any) -> Tensor:
        return (as_time(t) + self.s) / (1 + self.s) * math.pi / 2

    def alpha(self, t: Any) -> Tensor:
        return self._angle(t).cos() / self._first.cos()

    def sigma(self, t: Any) -> Tensor:
        """sqrt(1 - alpha^2), written as a product so that nothing cancels near t = 0."""
        angle = self._angle(t)
        return ((angle + self._first).sin() * (angle - self._first).sin()).sqrt() / self._first.cos()

    def f(self, t: Any) -> Tensor:
        return -self._angle(t).tan() * math.pi / 2 / (1 + self.s)

    def dlam(self, t: Any) -> Tensor:
        return self.f(t) / self.sigma(t) ** 2

    def t_of_lam(self, lam: Any) -> Tensor:
        alpha = torch.exp(logsigmoid(2 * as_time(lam)) / 2)
        return torch.acos(alpha * self._first.cos()) * 2 / math.pi * (1 + self.s) - self.s

    def model_time(self, t: Any) -> Tensor:
        return 1000 * as_time(t)


class VarianceExploding(NoiseSchedule):
    """alpha = 1 and sigma = t (Karras et al. 2022, arXiv 2206.00364).

    time_embedding: "log" hands log(sigma)/4 to the network (EDM), "atan" 2 atan(sigma)/pi (Stable Audio),
    "consistency" 250 log(sigma + 1e-44) (consistency models), "sigma" sigma itself (score SDE).
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, time_embedding: str = "log"):
        self.t_min, self.T, self.time_embedding = sigma_min, sigma_max, time_embedding

    def alpha(self, t: Any) -> Tensor:
        return torch.ones_like(as_time(t))

    def sigma(self, t: Any) -> Tensor:
        return as_time(t)

    def f(self, t: Any) -> Tensor:
        return torch.zeros_like(as_time(t))

    def dlam(self, t: Any) -> Tensor:
        return -1 / as_time(t)

    def dsigma(self, t: Any) -> Tensor:
        return torch.ones_like(as_time(t))

    def t_of_lam(self, lam: Any) -> Tensor:
        return torch.exp(-as_time(lam))

    def model_time(self, t: Any) -> Tensor:
        t = as_time(t)
        if self.time_embedding == "log":
            return t.log() / 4
        if self.time_embedding == "atan":
            return t.atan() * 2 / math.pi
        return 250 * torch.log(t + 1e-44) if self.time_embedding == "consistency" else t


class RectifiedFlow(NoiseSchedule):
    """alpha = 1 - t, sigma = t; the network is told `scale * t` (Liu et al. 2022, arXiv 2209.03003)."""

    def __init__(self, scale: float = 1000.0, t_min: float = 1e-3):
        self.scale, self.t_min = scale, t_min

    def alpha(self, t: Any) -> Tensor:
        return 1 - as_time(t)

    def sigma(self, t: Any) -> Tensor:
        return as_time(t)

    def f(self, t: Any) -> Tensor:
        return -1 / (1 - as_time(t))

    def dlam(self, t: Any) -> Tensor:
        t = as_time(t)
        return -1 / (t * (1 - t))

    def dalpha(self, t: Any) -> Tensor:
        return -torch.ones_like(as_time(t))

    def dsigma(self, t: Any) -> Tensor:
        return torch.ones_like(as_time(t))

    def t_of_lam(self, lam: Any) -> Tensor:
        return torch.sigmoid(-as_time(lam))

    def model_time(self, t: Any) -> Tensor:
        return self.scale * as_time(t)


class TrigFlow(VariancePreserving):
    """alpha = cos t, sigma = sin t, t in [0, pi/2] radians (Lu & Song 2024, arXiv 2410.11081)."""

    t_min, T = 1e-4, math.pi / 2

    def alpha(self, t: Any) -> Tensor:
        """cos t, and exactly 0 at pi/2 and just beyond (diffusers starts at 1.57080)."""
        return (math.pi / 2 - as_time(t)).clamp(min=0).sin()

    def sigma(self, t: Any) -> Tensor:
        return as_time(t).sin()

    def dlam(self, t: Any) -> Tensor:
        t = as_time(t)
        return -1 / (t.sin() * t.cos())

    def f(self, t: Any) -> Tensor:
        return -as_time(t).tan()

    def t_of_lam(self, lam: Any) -> Tensor:
        return torch.atan(torch.exp(-as_time(lam)))


class Between(NoiseSchedule):
    """A schedule whose usable range is narrowed to times in [t_min, T]; nothing else changes, so a grid made on it
    covers that range only. See `ends` in `grid_wrappers`."""

    def __init__(self, whole: NoiseSchedule, t_min: float, T: float):
        self.whole, self.t_min, self.T = whole, t_min, T

    def alpha(self, t: Any) -> Tensor:
        return self.whole.alpha(t)

    def sigma(self, t: Any) -> Tensor:
        return self.whole.sigma(t)

    def t_of_lam(self, lam: Any) -> Tensor:
        return self.whole.t_of_lam(lam)

    def f(self, t: Any) -> Tensor:
        return self.whole.f(t)

    def dlam(self, t: Any) -> Tensor:
        return self.whole.dlam(t)

    def lam(self, t: Any) -> Tensor:
        return self.whole.lam(t)

    def model_time(self, t: Any) -> Tensor:
        return self.whole.model_time(t)

    def levels_of_rho(self, rhos: Any) -> tuple[Level, ...]:
        return self.whole.levels_of_rho(rhos)

    @property
    def clean(self) -> Level:
        return self.whole.clean


def flow_shift(t: Any, shift: float) -> Tensor:
    """t' = s t / (1 + (s - 1) t): moves lam by -log(s) (Esser et al. 2024, arXiv 2403.03206, eq. 23)."""
    t = as_time(t)
    return shift * t / (1 + (shift - 1) * t)


def shift_of_mu(mu: float, kind: str = "exponential") -> float:
    """The shift s of a flow model with dynamic shifting: e^mu ("exponential") or mu itself ("linear")."""
    if kind not in ("exponential", "linear"):
        raise UsageError(f"unknown kind of dynamic shift {kind!r}; known: exponential, linear")
    return math.exp(mu) if kind == "exponential" else float(mu)


def mu_of_tokens(tokens: int, base: float = 0.5, largest: float = 1.15, few: int = 256, many: int = 4096) -> float:
    """The mu of Flux-like models for a picture of so many tokens: linear from `base` at `few` to `largest` at `many`
    (the config keys base_shift, max_shift, base_image_seq_len and max_image_seq_len)."""
    return base + (tokens - few) / (many - few) * (largest - base)


def stretch_to_terminal(t: Any, terminal: float) -> Tensor:
    """t' = 1 - (1 - t) (1 - terminal) / (1 - t_last): t = 1 stays, the last of the list becomes `terminal` (LTX-Video,
    the config key shift_terminal)."""
    t = as_time(t)
    return 1 - (1 - t) * (1 - terminal) / (1 - t[-1])


def stable_diffusion_schedule(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> DiscreteVP:
    """The "scaled_linear" betas of Stable Diffusion."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return DiscreteVP(torch.cumprod(1 - betas, 0))


def from_scheduler(scheduler: Any) -> NoiseSchedule:
    """The schedule of any diffusers scheduler (table A.5 of the sampler notes): by its config, never by its state.

    Raises UsageError for a class that has no Gaussian noise schedule (VQ, masked or text diffusion).
    """
    name, config = type(scheduler).__name__, scheduler.config
    if is_flow(scheduler):
        return RectifiedFlow(scale=float(config.num_train_timesteps))
    if name.startswith("EDM"):
        return VarianceExploding(config.sigma_min, config.sigma_max, "log")
    if name.startswith("CosineDPM"):
        return VarianceExploding(config.sigma_min, config.sigma_max, "atan")
    if name.startswith("CMStochastic"):
        return VarianceExploding(config.sigma_min, config.sigma_max, "consistency")
    if name.startswith("ScoreSdeVe"):
        return VarianceExploding(config.sigma_min, config.sigma_max, "sigma")
    if name == "SCMScheduler":
        return TrigFlow()
    if isinstance(table := getattr(scheduler, "alphas_cumprod", None), Tensor):
        return DiscreteVP(table)
    raise UsageError(f"{name} has no Gaussian noise schedule that we know; use for example DDIMScheduler")


def is_flow(scheduler: Any) -> bool:
    """Does this diffusers scheduler run on the rectified-flow path?"""
    return is_flow_config(type(scheduler).__name__, scheduler.config)


def is_flow_config(name: str, config: Any) -> bool:
    """The same for the class name and the config of a scheduler."""
    return (
        "FlowMatch" in name
        or name == "LTXEulerAncestralRFScheduler"
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )
