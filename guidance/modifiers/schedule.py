"""Guidance weight schedules: Wang et al. 2024, arXiv 2404.13040, Table 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from ...errors import UsageError, nearest
from ..rule import Context, Guide, Modifier, Rule
from ..scale import Scale

# Shape over the share tau of the run, 0 at noise and 1 at clean data, with mean 1 over tau.
SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda tau: 1.0,
    "linear": lambda tau: 2 * tau,
    "cosine": lambda tau: 1 - math.cos(math.pi * tau),
    "invlinear": lambda tau: 2 * (1 - tau),
    "sine": lambda tau: 1 + math.cos(math.pi * tau),
    "v": lambda tau: 2 * abs(1 - 2 * tau),
    "lambda": lambda tau: 2 * (1 - abs(1 - 2 * tau)),
}


@dataclass(frozen=True)
class WeightSchedule(Modifier):
    """Vary the scale of the wrapped rule over the run, keeping its mean: scale_t = 1 + shape(tau) (scale - 1).

    shape: constant (off), linear, cosine (rising: recommended), invlinear, sine (falling), v, lambda.
    floor: the scale is at least this. tau is taken at the middle of each step, so the mean over a run is the scale
    (exactly, but for v and lambda with an odd number of steps: within 1/steps^2).
    The paper leaves open whether scale or scale - 1 is scheduled; this is the reading that never falls below 1.
    """

    shape: str = "cosine"
    floor: float = 1.0

    order: ClassVar[int] = 10
    passes: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise UsageError(f"unknown weight schedule {self.shape!r}: {nearest(self.shape, SHAPES)}")
        if self.inner is not None:
            scaled_rule(self.inner, 1.0, self.floor)  # refuses a rule without a scale now rather than in the run

    def guide(self, ctx: Context) -> Guide:
        if self.inner is None or self.shape == "constant":
            return (yield from self.rule.guide(ctx))
        factor = SHAPES[self.shape]((ctx.step + 0.5) / ctx.steps)
        return (yield from scaled_rule(self.rule, factor, self.floor).guide(ctx))


def scaled_rule(rule: Rule, factor: float, floor: float) -> Rule:
    """The rule with 1 + factor (scale - 1) for its scale; the parts of a sum each."""
    from ..compose import Sum

    if isinstance(rule, Sum):
        return replace(rule, parts=tuple(scaled_rule(part, factor, floor) for part in rule.parts))
    scale: Scale | None = getattr(rule, "scale", None)
    if scale is None:
        raise UsageError(f"{type(rule).__name__} has no scale to schedule; use it with cfg, apg or cfg++:scale=...")
    return replace(cast(Any, rule), scale=_moved(scale, factor, floor))


def _moved(scale: Scale, factor: float, floor: float) -> Scale:
    if isinstance(scale, tuple):
        return tuple(max(floor, 1 + factor * (s - 1)) for s in scale)
    return max(floor, 1 + factor * (scale - 1))
