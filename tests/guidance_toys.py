"""Exact denoisers that speak any parameterization and count their calls, for the tests of guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pilotage import guidance
from pilotage.guidance.registry import RULES
from pilotage.guidance.rule import Context
from pilotage.samplers.prediction import EPSILON, SAMPLE, Parameterization, Prediction
from pilotage.samplers.schedule import Level, NoiseSchedule, stable_diffusion_schedule

SD = stable_diffusion_schedule()


@dataclass
class Toy:
    """Data N(condition, width^2), x and condition (B, ...), as a network of `kind`. `calls`: the rows of each call."""

    kind: Parameterization = SAMPLE
    width: float = 0.5
    schedule: NoiseSchedule = SD
    calls: list[int] = field(default_factory=list)

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        self.calls.append(len(x))
        mean = torch.zeros_like(x) if condition is None else condition
        gain = level.alpha * self.width**2 / (level.alpha**2 * self.width**2 + level.sigma**2)
        return spoken(x, level, mean + gain * (x - level.alpha * mean), self.kind)


def spoken(x: Tensor, level: Level, denoised: Tensor, kind: Parameterization) -> Prediction:
    """The prediction of a network of `kind` whose clean estimate is `denoised`."""
    dx, dv = kind.denoised(level)
    return Prediction(x, level, (denoised - dx * x) / dv, kind)


def registered() -> list[str]:
    """Rules that can run on a toy; those that need attention, gradients or classifiers have tests of their own."""
    known = {"cond", "uncond", "image", "weak"}
    names = [name for name, spec in RULES.items() if set(spec.needs) <= known]
    return [n for n in names if not {"attention", "gradient"} & set(RULES[n].load().__module__.split("."))]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def conditions(*shape: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Three of them, all unlike."""
    return {name: normal(*shape, seed=seed, dtype=dtype) for name, seed in (("cond", 1), ("uncond", 2), ("image", 3))}


def guided(
    rule: guidance.Rule,
    shape: tuple[int, ...] = (3, 4, 4),
    kind: Parameterization = SAMPLE,
    schedule: NoiseSchedule = SD,
    given: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float64,
) -> guidance.Guided:
    networks = {"main": Toy(kind, schedule=schedule), "weak": Toy(kind, 0.8, schedule)}
    return guidance.Guided(networks, rule, given or conditions(*shape, dtype=dtype))


def context(x: Tensor, level: Level, goal: Level, step: int = 0, steps: int = 1, memory: Any = None) -> Context:
    return Context(x, level, level, goal, step, steps, 0, SD, memory or {})


__all__ = ["EPSILON", "SAMPLE", "SD", "Toy", "conditions", "context", "guided", "normal", "spoken"]
