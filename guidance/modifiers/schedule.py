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
# Those with a setting of their own, `power`; their mean is not 1.
BENT: dict[str, Callable[[float, float], float]] = {
    "power": lambda tau, power: (1 - math.cos(math.pi * tau**power)) / 2,
    "exponential": lambda tau, power: math.exp(power * tau),
}
OF = ("excess", "scale")


@dataclass(frozen=True)
class WeightSchedule(Modifier):
    """Vary the scale of the wrapped rule over the run, keeping its mean: scale_t = 1 + shape(tau) (scale - 1).

    shape: constant (off), linear, cosine (rising: recommended), invlinear, sine (falling), v, lambda. Two more are bent
    by `power` and do not keep the mean: power, (1 - cos(pi tau^power)) / 2, and exponential, e^(power tau) (C2FG,
    arXiv 2603.08155: power 0.69 for DiT, 1 for SiT, 0.2 for SD 1.5, as others quote it).
    floor: the scale is at least this; the paper's clamp, 2 for SD 1.5, 4 for SDXL as others quote it. tau is taken at
    the middle of each step, so the mean over a run is the scale (exactly, but for v and lambda with an odd number of
    steps: within 1/steps^2). of: the paper leaves open what is scheduled. "excess", scale - 1, never falls below 1;
    "scale" is scale_t = shape(tau) scale, whose rising shapes start at the null prediction: give floor=0 with it.
    """

    shape: str = "cosine"
    floor: float = 1.0
    power: float = 1.0
    of: str = "excess"

    order: ClassVar[int] = 10
    passes: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.shape not in (*SHAPES, *BENT):
            raise UsageError(f"unknown weight schedule {self.shape!r}: {nearest(self.shape, (*SHAPES, *BENT))}")
        if self.of not in OF:
            raise UsageError(f"schedule of={self.of!r} is unknown; use excess (scale - 1) or scale")
        if self.shape == "power" and self.power <= 0:
            raise UsageError(f"schedule power={self.power} must be above 0 for the shape power; 1 is half a cosine")
        if self.inner is not None:
            scaled_rule(self.inner, 1.0, self.floor)  # refuses a rule without a scale now rather than in the run

    def guide(self, ctx: Context) -> Guide:
        if self.inner is None or self.shape == "constant":
            return (yield from self.rule.guide(ctx))
        at = (ctx.step + 0.5) / ctx.steps
        factor = SHAPES[self.shape](at) if self.shape in SHAPES else BENT[self.shape](at, self.power)
        return (yield from scaled_rule(self.rule, factor, self.floor, float(self.of == "excess")).guide(ctx))


def scaled_rule(rule: Rule, factor: float, floor: float, base: float = 1.0) -> Rule:
    """The rule with base + factor (scale - base) for its scale; the parts of a sum each."""
    from ..compose import Sum

    if isinstance(rule, Sum):
        return replace(rule, parts=tuple(scaled_rule(part, factor, floor, base) for part in rule.parts))
    scale: Scale | None = getattr(rule, "scale", None)
    if scale is None:
        raise UsageError(f"{type(rule).__name__} has no scale to schedule; use it with cfg, apg or cfg++:scale=...")
    return replace(cast(Any, rule), scale=_moved(scale, factor, floor, base))


def _moved(scale: Scale, factor: float, floor: float, base: float) -> Scale:
    if isinstance(scale, tuple):
        return tuple(max(floor, base + factor * (s - base)) for s in scale)
    return max(floor, base + factor * (scale - base))
