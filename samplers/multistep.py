"""What the multistep solvers share: one evaluation a step, and a look back at those of earlier steps.

A step of the data form adds `denoised` values, newest first, and one of the noise form adds differences of `noise`:

    x' = (sigma'/sigma) e^{-eta h} x + alpha' sum_j w_j D_{-j} + sigma' sqrt(1 - e^{-2 eta h}) xi
    x' = alpha' D + sigma' noise + alpha' sum_{j>0} C_j (noise_{-j} - noise)

Both are of first order where nothing is left to look back at, and then finite from pure noise to clean data.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .exponential import combined, matched, moments
from .first_order import first_order_step
from .prediction import Prediction
from .sampler import Leg, Levels, Sampler, State, finish
from .schedule import Level, NoiseSchedule


def looked_back(levels: Levels, step: int, most: int) -> Levels:
    """Where the evaluations stand that a step combines, newest first: its own and those of the steps before, `most` in
    all. Pure noise, where lam is infinite, counts for nothing; nor does the past where a step begins there or ends at
    clean data."""
    if levels[step].alpha <= 0 or levels[step + 1].sigma <= 0:
        return levels[step : step + 1]
    return tuple(level for level in levels[max(0, step + 1 - most) : step + 1] if level.alpha > 0)[::-1]


def shares(nodes: Levels, level: Level, goal: Level) -> list[float]:
    """Where `nodes` stand on the way from `level`, which may be one of them, to `goal` in lam: 0 .. 1, or below 0."""
    return [(node.lam - level.lam) / (goal.lam - level.lam) if node is not level else 0.0 for node in nodes]


class DataWeights(NamedTuple):
    """x' = keep x + sum_j past_j D_{-j} + fresh xi, with past_0 the weight of this step's `denoised`."""

    keep: float
    past: tuple[float, ...]
    fresh: float = 0.0


@dataclass(frozen=True)
class DataMultistep(Sampler):
    """The data form, with as many evaluations in a step as its order.

    eta: 0 is the ODE, 1 the reverse SDE; between them a part of its noise.
    """

    eta: float = 1.0

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        return tuple(self.leg(levels, step) for step in range(len(levels) - 1))

    def leg(self, levels: Levels, step: int) -> Leg:
        level, goal = levels[step], levels[step + 1]
        h = goal.lam - level.lam  # infinite from pure noise and to clean data; every exponential below is then finite
        nodes = looked_back(levels, step, self.order)
        past = matched(shares(nodes, level, goal), self.wanted((1 + self.eta) * h, len(nodes)))
        keep = goal.sigma / level.sigma * (math.exp(-self.eta * h) if self.eta else 1.0)
        fresh = goal.sigma * math.sqrt(-math.expm1(-2 * self.eta * h)) if self.eta else 0.0
        return Leg((level,), goal, DataWeights(keep, tuple(goal.alpha * w for w in past), fresh), fresh=fresh > 0)

    def wanted(self, h: float, count: int) -> list[float]:
        """The `count` moments that the weights of a step reproduce; h: its length (1 + eta)(lam' - lam)."""
        return moments(h, count)

    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        keep, past, fresh = state.leg.weights
        seen = (prediction.denoised, *state.history)
        x = combined(keep, state.x, past, seen)
        if fresh:
            assert noise is not None, "a stochastic step needs noise"
            x = torch.add(x, noise, alpha=fresh)
        return finish(state, x, *seen[: self.order - 1])


class NoiseWeights(NamedTuple):
    """x' = denoised D + noise eps + sum_j past_j eps_{-j}."""

    denoised: float
    noise: float
    past: tuple[float, ...]


class NoiseMultistep(Sampler):
    """The noise form, with as many evaluations in a step as its order."""

    @abstractmethod
    def integrals(self, nodes: Levels, goal: Level, schedule: NoiseSchedule | None) -> tuple[float, ...]:
        """C_1, C_2, .. of the step from nodes[0] to `goal`, for the earlier evaluations at nodes[1:], newest first."""

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        return tuple(self._leg(levels, step, schedule) for step in range(len(levels) - 1))

    def _leg(self, levels: Levels, step: int, schedule: NoiseSchedule | None) -> Leg:
        goal, nodes = levels[step + 1], looked_back(levels, step, self.order)
        past = tuple(goal.alpha * c for c in self.integrals(nodes, goal, schedule)) if len(nodes) > 1 else ()
        return Leg((levels[step],), goal, NoiseWeights(goal.alpha, goal.sigma - sum(past), past))

    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        a, b, past = state.leg.weights
        x = first_order_step(prediction, a, b)
        for weight, before in zip(past, state.history):
            x = torch.add(x, before, alpha=weight)
        if self.order == 1 or not b:  # nothing is looked back at, or the run is at its end
            return finish(state, x)
        return finish(state, x, prediction.noise, *state.history[: self.order - 2])
