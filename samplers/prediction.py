"""What a network said about x at a level, in whichever terms it speaks.

A `Parameterization` says what the raw output V means. Both quantities that samplers and rules need are affine in it,

    denoised = dx * x + dv * V          noise = nx * x + nv * V

with coefficients that have no small divisors near sigma = 0 (for `noise`) or alpha = 0 (for `denoised`) wherever the
parameterization allows it. No sampler and no rule asks what the network predicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError, nearest
from .schedule import Level, is_flow

Pair = tuple[float, float]


@dataclass(frozen=True)
class Parameterization:
    """denoised(level) and noise(level) give the coefficients of (x, V)."""

    name: str
    denoised: Callable[[Level], Pair]
    noise: Callable[[Level], Pair]


def _needs_signal(level: Level) -> float:
    if level.alpha <= 0:
        raise UsageError(
            "an epsilon or score network says nothing at alpha = 0 (zero terminal SNR); "
            "use a v- or flow-prediction model, or a grid that starts below pure noise"
        )
    return level.alpha


def _needs_noise(level: Level) -> float:
    if level.sigma <= 0:
        raise UsageError("the noise of a sample-predicting network is undefined at sigma = 0; stop one level earlier")
    return level.sigma


def _power(level: Level) -> float:
    return level.alpha**2 + level.sigma**2


EPSILON = Parameterization(
    "epsilon",
    lambda l: (1 / _needs_signal(l), -l.sigma / l.alpha),
    lambda l: (0.0, 1.0),
)
SAMPLE = Parameterization(
    "sample",
    lambda l: (0.0, 1.0),
    lambda l: (1 / _needs_noise(l), -l.alpha / l.sigma),
)
V_PREDICTION = Parameterization(  # V = alpha noise - sigma x_0, in any schedule
    "v_prediction",
    lambda l: (l.alpha / _power(l), -l.sigma / _power(l)),
    lambda l: (l.sigma / _power(l), l.alpha / _power(l)),
)
FLOW_PREDICTION = Parameterization(  # V = noise - x_0 on alpha + sigma = 1
    "flow_prediction",
    lambda l: (1.0, -l.sigma),
    lambda l: (1.0, l.alpha),
)
FLOW_TO_DATA = Parameterization(  # V = x_0 - noise (Mochi)
    "flow_to_data",
    lambda l: (1.0, l.sigma),
    lambda l: (1.0, -l.alpha),
)
SCORE = Parameterization(  # V = -noise / sigma
    "score",
    lambda l: (1 / _needs_signal(l), l.sigma**2 / l.alpha),
    lambda l: (0.0, -l.sigma),
)


def edm(sigma_data: float = 0.5, sign: float = 1.0) -> Parameterization:
    """EDM preconditioning on alpha = 1: denoised = c_skip x + c_out V (Karras et al. 2022, arXiv 2206.00364, Table 1).

    sign = -1 is what diffusers' EDM and cosine schedulers call v_prediction.
    """

    def root(l: Level) -> float:
        return math.hypot(l.sigma, sigma_data)

    return Parameterization(
        "edm" if sign > 0 else "edm_v",
        lambda l: (sigma_data**2 / root(l) ** 2, sign * l.sigma * sigma_data / root(l)),
        lambda l: (l.sigma / root(l) ** 2, -sign * sigma_data / root(l)),
    )


def consistency(sigma_data: float = 0.5, sigma_min: float = 0.002) -> Parameterization:
    """EDM preconditioning with the boundary condition denoised = x at sigma_min (Song et al. 2023, arXiv 2303.01469,
    Appendix C)."""

    def parts(l: Level) -> tuple[float, float, float]:
        above = l.sigma - sigma_min
        norm = above**2 + sigma_data**2
        return sigma_data**2 / norm, above**2 / norm, above * sigma_data / math.hypot(l.sigma, sigma_data)

    return Parameterization(
        "edm_consistency",
        lambda l: (parts(l)[0], parts(l)[2]),
        lambda l: (parts(l)[1] / _needs_noise(l), -parts(l)[2] / l.sigma),
    )


KINDS = (
    EPSILON, SAMPLE, V_PREDICTION, FLOW_PREDICTION, FLOW_TO_DATA, SCORE, edm(), edm(sign=-1.0), consistency()
)  # fmt: skip
PARAMETERIZATIONS = {kind.name: kind for kind in KINDS}


def parameterization(kind: str | Parameterization) -> Parameterization:
    """By name; raises UsageError with the nearest names."""
    if isinstance(kind, Parameterization):
        return kind
    if kind not in PARAMETERIZATIONS:
        raise UsageError(f"unknown prediction type {kind!r}: {nearest(kind, PARAMETERIZATIONS)}")
    return PARAMETERIZATIONS[kind]


def predicted_by(scheduler: Any) -> Parameterization:
    """What the network behind a diffusers scheduler predicts, as the scheduler's config says."""
    name, config = type(scheduler).__name__, scheduler.config
    kind = config.get("prediction_type")
    if name.startswith(("EDM", "CosineDPM")):
        return edm(config.sigma_data, -1.0 if kind == "v_prediction" else 1.0)
    if name.startswith("CMStochastic"):
        return consistency(config.sigma_data, config.sigma_min)
    if name.startswith("ScoreSdeVe"):
        return SCORE
    if is_flow(scheduler):
        return FLOW_TO_DATA if config.get("invert_sigmas") else FLOW_PREDICTION
    if name == "SCMScheduler":  # TrigFlow: V = cos(t) noise - sin(t) x_0
        return V_PREDICTION
    return parameterization(kind or "epsilon")


def affine(a: float, x: Tensor, b: float, y: Tensor) -> Tensor:
    """a x + b y in as few tensor operations as the coefficients allow."""
    if a == 0:
        return y if b == 1 else y * b
    return torch.add(x if a == 1 else x * a, y, alpha=b)


@dataclass(frozen=True, eq=False)
class Prediction:
    """A network's (or a rule's) answer at one point.

    x, native: (B, ...) tensors of one shape, at least float32. level: the point's `Level`.
    base: None, or the consistent prediction that the step is to run on when a rule returns an *inconsistent* one
        (CFG++, MPGD): samplers run the step on `base` and then add alpha' (denoised - base.denoised).
    """

    x: Tensor
    level: Level
    native: Tensor
    kind: Parameterization
    base: Prediction | None = field(default=None, repr=False)

    @cached_property
    def denoised(self) -> Tensor:
        """Prediction of the clean x_0."""
        dx, dv = self.kind.denoised(self.level)
        return affine(dx, self.x, dv, self.native)

    @cached_property
    def noise(self) -> Tensor:
        """Prediction of the unit noise."""
        nx, nv = self.kind.noise(self.level)
        return affine(nx, self.x, nv, self.native)

    def mixed(self, a: float, b: float) -> Tensor:
        """a denoised + b noise, in one or two tensor operations: both are affine in x and native."""
        if not b:
            return self.denoised if a == 1 else self.denoised * a
        (dx, dv), (nx, nv) = self.kind.denoised(self.level), self.kind.noise(self.level)
        return affine(a * dx + b * nx, self.x, a * dv + b * nv, self.native)

    @property
    def step_on(self) -> Prediction:
        """The consistent prediction that a sampler runs its step on and keeps in its history."""
        return self.base or self

    def like(self, native: Tensor) -> Prediction:
        """The same point with another raw output: for combinations whose weights sum to one."""
        return replace(self, native=native)

    def with_denoised(self, denoised: Tensor) -> Prediction:
        """The consistent prediction of the same point whose denoised value is this one."""
        dx, dv = self.kind.denoised(self.level)
        if dv == 0:
            return self
        made = self.like(affine(-dx / dv, self.x, 1 / dv, denoised))
        made.__dict__["denoised"] = denoised
        return made

    def with_noise(self, noise: Tensor) -> Prediction:
        """The consistent prediction of the same point whose noise is this one."""
        nx, nv = self.kind.noise(self.level)
        if nv == 0:
            return self
        made = self.like(affine(-nx / nv, self.x, 1 / nv, noise))
        made.__dict__["noise"] = noise
        return made

    def renoised_with(self, base: Prediction) -> Prediction:
        """This denoised value, the noise of `base` (the law of CFG++; see the class docstring)."""
        return replace(self, base=base.step_on)

    def where(self, rows: Tensor, other: Prediction) -> Prediction:
        """Rows of this prediction where `rows` (bool, (B,)) holds, of `other` (of the same kind) elsewhere."""
        assert self.kind.name == other.kind.name, f"rows of {self.kind.name} and {other.kind.name} cannot be mixed"
        mask = rows.reshape(-1, *[1] * (self.native.dim() - 1))
        base = None
        if self.base is not None or other.base is not None:
            base = self.step_on.where(rows, other.step_on)
        x = self.x if self.x is other.x else torch.where(mask, self.x, other.x)
        return Prediction(x, self.level, torch.where(mask, self.native, other.native), self.kind, base)


def working_precision(x: Tensor) -> Tensor:
    """Half precision becomes float32: squared norms of latents overflow float16."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
