"""Guidance rescale: Lin et al. 2023, arXiv 2305.08891, eq. 14-16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...errors import UsageError
from ..reduce import safe_ratio
from ..rule import Ask, Context, Guide, Modifier


@dataclass(frozen=True)
class Rescale(Modifier):
    """Give the guided prediction the deviation that the conditional one has, in part.

    phi: 0 is off; 0.7 is the paper's; 1 matches fully and looks flat. space: "native" (what the network predicts; the
    paper's network predicts v), "denoised" or "noise". The result depends on it.
    """

    phi: float = 0.7
    space: str = "native"

    order: ClassVar[int] = 20
    passes: ClassVar[int] = 1  # in native space

    def __post_init__(self) -> None:
        if self.space not in ("native", "denoised", "noise"):
            raise UsageError(f"rescale space {self.space!r} is unknown; use native, denoised or noise")

    def guide(self, ctx: Context) -> Guide:
        guided = yield from self.rule.guide(ctx)
        if self.phi == 0:
            return guided
        (cond,) = yield (Ask(),)
        if guided is cond:
            return guided
        value = getattr(guided, self.space)
        factor = safe_ratio(deviation(getattr(cond, self.space)), deviation(value))
        scaled = value * ctx.column(1 + self.phi * (factor - 1).where(factor > 0, 0.0))
        return guided.like(scaled) if self.space == "native" else getattr(guided, f"with_{self.space}")(scaled)


def deviation(x: Tensor) -> Tensor:
    """Unbiased standard deviation of each row about its mean: (B,)."""
    return x.reshape(x.shape[0], -1).std(dim=1)
