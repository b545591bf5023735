"""DPM-Solver++(3M) and its stochastic form: Lu et al. 2022, arXiv 2211.01095, with the second derivative mended.

With h = lam' - lam, H = (1 + eta) h, r_0 = (lam - lam_-1) / h, r_1 = (lam_-1 - lam_-2) / h,
a = (D - D_-1) / r_0, b = (D_-1 - D_-2) / r_1, D_1 = a + r_0 (a - b) / (r_0 + r_1) and D_2 = 2 (a - b) / (r_0 + r_1),

    x' = (sigma'/sigma) e^{-eta h} x + alpha' (M_0 D + M_1 D_1 + M_2 D_2) + sigma' sqrt(1 - e^{-2 eta h}) xi
    M_0 = -expm1(-H),    M_1 = expm1(-H)/H + 1,    M_2 = 1/2 - (expm1(-H) + H) / H^2

The code that is widely copied leaves the 2 out of D_2; it then converges with second order. `third_order="reference"`
is that code, to compare with; some of it has the sign of M_2 wrong in the stochastic form, which is not offered.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from ..errors import UsageError, nearest
from .dpmpp_3s import DPMPP3SSampler
from .exponential import moments
from .multistep import DataMultistep
from .prediction import Prediction
from .sampler import Leg, Levels, State
from .schedule import NoiseSchedule
from .single_step import advance_stage

THIRD_ORDERS = ("exact", "reference")
STARTS = ("lower", "single")


@dataclass(frozen=True)
class SDEDPMPP3MSampler(DataMultistep):
    """eta: 0 is DPM++ 3M (the ODE), 1 the reverse SDE. third_order: "exact" or "reference", see above."""

    eta: float = 1.0
    third_order: str = "exact"
    order: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.third_order not in THIRD_ORDERS:
            raise UsageError(f"unknown third_order {self.third_order!r}: {nearest(self.third_order, THIRD_ORDERS)}")

    def wanted(self, h: float, count: int) -> list[float]:
        found = moments(h, count)
        if count == 2:
            found[1] = found[0] / 2  # a step of order 2 is 2M's midpoint
        if count == 3 and self.third_order == "reference":
            found[2] /= 2
        return found


@dataclass(frozen=True)
class DPMPP3MSampler(SDEDPMPP3MSampler):
    """The deterministic member.

    start: "lower" takes steps of orders 1 and 2 first, one evaluation each; their error makes the whole run one of
    second order. "single" takes two steps of DPM++ 3S, three evaluations each, and the run is of third order.
    """

    eta: float = 0.0
    start: str = "lower"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in STARTS:
            raise UsageError(f"unknown start {self.start!r}: {nearest(self.start, STARTS)}")
        if self.start == "single" and self.eta:
            raise UsageError("start=single is deterministic; use eta=0, or start=lower")

    def plan(self, levels: Levels, schedule: NoiseSchedule | None = None) -> tuple[Leg, ...]:
        legs = super().plan(levels, schedule)
        if self.start == "lower":
            return legs
        single = DPMPP3SSampler()
        few = sum(len(leg.weights.past) < self.order and leg.goal.sigma > 0 for leg in legs)
        return (*(single.leg(a, b, schedule) for a, b in pairwise(levels[: few + 1])), *legs[few:])

    def advance(self, state: State, prediction: Prediction, noise: Tensor | None) -> State:
        if len(state.leg.points) == 1:
            return super().advance(state, prediction, noise)
        return advance_stage(state, prediction.denoised, remembered=self.order - 1)
