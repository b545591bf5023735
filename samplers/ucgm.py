"""UCGM-S, the sampler of unified continuous generative models: Sun et al. 2025, arXiv 2505.07447.

With D and e the `denoised` and `noise` of the evaluation, extrapolated from the one before (raw values both),

    D <- D + kappa (D - D_before),    e <- e + kappa (e - e_before)                from the third evaluation on
    x' = alpha' D + sigma' (sqrt(1 - rho_s) e + sqrt(rho_s) xi)

It is of first order for every kappa but one: 1/3 on even steps, and r^2 / (1 + 2 r) with r the ratio of a step to the
one before on others, is of second order, on any path. Other values, 0.2 to 0.6 in the source, are a matter of looks for
networks that are not exact. Steps are measured in t = rho / (1 + rho), the time of rectified flow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from .first_order import first_order_step
from .flow_ancestral import flow_time
from .heun import Trapezoid, trapezoid
from .prediction import Prediction, affine
from .sampler import Leg, Levels, Sampler, State, finish
from .schedule import Level, NoiseSchedule


class UCGMWeights(NamedTuple):
    """x' = now_0 D + now_1 e + past_0 D_before + past_1 e_before + fresh xi: the extrapolation by kappa multiplied out.
    second: what Heun's mode goes on with."""

    now: tuple[float, float]
    past: tuple[float, float]
    fresh: float
    kappa: float
    second: Trapezoid | None


@dataclass(frozen=True)
class UCGMSampler(Sampler):
    """kappa: the extrapolation, a number or "auto2", the second-order one. rho_s: the share of fresh noise, in [0, 1],
    or "auto", which is clip(2 |t' - t| t / t'^2, 0, 1) of the first step for the whole run, as in the source.

    heun: the source's order 2, two evaluations a step with the average of e and that at the end; deterministic, so
    rho_s must be 0, and of second order with kappa = 0 only. last: what a run to clean data ends at: "raw", the last
    evaluation's `denoised`, as the source has it, or "extrapolated", the x' of the formula.
    """

    kappa: float | str = "auto2"
    rho_s: float | str = 0.0
    heun: bool = False
    last: str = "raw"

    def __post_init__(self) -> None:
        if isinstance(self.kappa, str) and self.kappa != "auto2":
            raise UsageError(f'ucgm kappa is a number or "auto2", not {self.kappa!r}')
        if self.rho_s != "auto" and (isinstance(self.rho_s, str) or not 0 <= self.rho_s <= 1):
            raise UsageError(f'ucgm rho_s lies between 0 and 1 or is "auto", not {self.rho_s!r}')
        if self.heun and self.rho_s != 0:
            raise UsageError("ucgm with heun=true is deterministic: leave rho_s at 0")
        if self.last not in ("raw", "extrapolated"):
            raise UsageError(f'ucgm last is "raw" or "extrapolated", not {self.last!r}')

    @property
    def order(self) -> int:  # type: ignore[override]
        return 2 if (self.kappa == 0 if self.heun else self.kappa == "auto2") else 1

    @property
    def stages(self) -> int:  # type: ignore[override]
        return 2 if self.heun else 1

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.rho_s != 0

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        share = auto_share(*levels[:2]) if self.rho_s == "auto" else float(self.rho_s)
        return tuple(self._leg(levels, step, share) for step in range(len(levels) - 1))

    def _leg(self, levels: Levels, step: int, share: float) -> Leg:
        level, goal = levels[step], levels[step + 1]
        second = trapezoid(level, goal) if self.heun else None
        kappa = self._extrapolation(levels, step)
        if goal.sigma <= 0 and self.last == "raw":
            kappa = 0.0
        denoised, noise, fresh = goal.alpha, goal.sigma * math.sqrt(1 - share), goal.sigma * math.sqrt(share)
        now, past = ((k * denoised, k * noise) for k in (1 + kappa, -kappa))
        weights = UCGMWeights(now, past, fresh, kappa, second)
        return Leg((level, goal) if second else (level,), goal, weights, fresh=fresh > 0)

    def _extrapolation(self, levels: Levels, step: int) -> float:
        if step < 2:
            return 0.0
        if self.kappa != "auto2":
            return float(self.kappa)
        before, now, then = map(flow_time, levels[step - 1 : step + 2])
        r = (then - now) / (now - before)
        return r * r / (1 + 2 * r)

    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        if state.stage:
            return self._second(state, prediction)
        now, past, fresh, kappa, second = state.leg.weights
        x = first_order_step(prediction, now[0], now[1], fresh, noise)
        if kappa:
            for weight, before in zip(past, state.history):
                x = torch.add(x, before, alpha=weight) if weight else x
        if state.goal.sigma <= 0:
            return finish(state, x)
        seen = (prediction.denoised, prediction.noise)
        if second is None:
            return finish(state, x, *seen)
        which = 0 if second.slope == "denoised" else 1
        slope = affine(1 + kappa, seen[which], -kappa, state.history[which]) if kappa else seen[which]
        return replace(state, x=x, stage=1, start=state.x, history=(*seen, slope))

    def _second(self, state: State, prediction: Prediction) -> State:
        """Heun's mode: the average of the slope at the start and the one at the end."""
        second = state.leg.weights.second
        slopes = state.history[2] + getattr(prediction, second.slope)
        assert state.start is not None
        return finish(state, torch.add(state.start * second.keep, slopes, alpha=second.half), *state.history[:2])


def auto_share(level: Level, goal: Level) -> float:
    """clip(2 |t' - t| t / t'^2, 0, 1)."""
    now, then = flow_time(level), flow_time(goal)
    return min(1.0, 2 * (now - then) * now / then**2) if then > 0 else 0.0
