"""Coupling that makes any one-step method reversible: McCallum & Foster 2024, arXiv 2410.11648; on diffusion models
it is known as Rex (Blasingame & Liu)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..denoiser import Denoiser
from ..sampler import Leg, Levels
from ..schedule import NoiseSchedule
from .reversible import Carried, ReversibleStep, checked, legs_of, started
from .scaled import Scaled, halfway, scaled_step
from .slope import slope_at, slope_in_the_middle

BASES = ("midpoint", "euler")


@dataclass(frozen=True)
class McCallumFoster(ReversibleStep):
    """y' = z y + (1 - z) v + Phi(v, h), v' = v - Phi(y', -h): the increments Phi of a base method, one forth from the
    second copy and one back from the first.

    z: how much of itself the first copy keeps, in (0, 1]; below 1 it holds the copies together, and going back
    amplifies rounding by z^(-steps). base: "midpoint" is of second order at four calls a step, "euler" of first order
    at two. A grid that ends at clean data asks the network about sigma = 0.
    """

    z: float = 0.999
    base: str = "midpoint"

    def __post_init__(self) -> None:
        if not 0 < self.z <= 1:
            raise UsageError(f"mccallum-foster z={self.z} must be above 0 and at most 1; the usual one is 0.999")
        if self.base not in BASES:
            raise UsageError(f"mccallum-foster base={self.base!r} is unknown: {' or '.join(BASES)}")

    @property
    def order(self) -> int:  # type: ignore[override]
        return 2 if self.base == "midpoint" else 1

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        pairs = [*pairwise(checked(levels))]
        if self.base == "euler":
            return legs_of(levels, [scaled_step(*pair) for pair in pairs])
        middles = tuple(halfway(*pair, schedule) for pair in pairs)
        return legs_of(
            levels, [scaled_step(*pair, middle) for pair, middle in zip(pairs, middles, strict=True)], middles
        )

    def begin(self, x: Tensor, levels: Levels, schedule: NoiseSchedule | None = None) -> Carried:
        return started(x, 2, self.plan(levels, schedule))

    def step(self, denoiser: Denoiser, state: Carried, i: int, condition: Any = None) -> Carried:
        s: Scaled = state.legs[i].weights
        y, v = (tensor / s.start for tensor in state.tensors)
        y = torch.add(y * self.z, v, alpha=1 - self.z) + self._phi(denoiser, v, state, i, 1, condition)
        v = v - self._phi(denoiser, y, state, i, -1, condition)
        return state.now(y * s.goal, v * s.goal)

    def back(self, denoiser: Denoiser, state: Carried, i: int, condition: Any = None) -> Carried:
        s: Scaled = state.legs[i].weights
        y, v = (tensor / s.goal for tensor in state.tensors)
        v = v + self._phi(denoiser, y, state, i, -1, condition)
        y = torch.sub(y - self._phi(denoiser, v, state, i, 1, condition), v, alpha=1 - self.z) / self.z
        return state.now(y * s.start, v * s.start)

    def _phi(self, denoiser: Denoiser, u: Tensor, state: Carried, i: int, way: int, condition: Any) -> Tensor:
        """The base method's increment of u over step i, from its start (way 1) or from its goal back (way -1)."""
        s: Scaled = state.legs[i].weights
        node, scale, h = (i, s.start, s.h) if way > 0 else (i + 1, s.goal, -s.h)
        slope = slope_at(denoiser, u * scale, state.legs, node, s.slope, condition)
        if self.base == "midpoint":
            half = torch.add(u, slope, alpha=h / 2) * s.middle
            slope = slope_in_the_middle(denoiser, half, state.legs, i, s.slope, condition)
        return slope * h

    def end(self, state: Carried) -> Tensor:
        return state.tensors[0]
