"""At which noise levels a batch is noised: drawn so that every part of the range comes in every batch.

A denoiser answers for one level at a time, so the rows of a batch are dealt to a few levels, one from each of `strata`
ranges of equal probability. Rows of one level go through the network together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import UsageError
from ..samplers.incomplete_beta import beta_quantile
from ..samplers.schedule import Level, NoiseSchedule


@dataclass(frozen=True)
class Group:
    """rows: which of the batch. level: theirs. share: where in the distribution it was drawn, in (0, 1)."""

    rows: range
    level: Level
    share: float


@dataclass(frozen=True)
class Times:
    """low, high: of the schedule's times, as shares of its noisiest one. a, b: the time's place between them has the
    distribution Beta(a, b); (1, 1) is uniform. strata: levels a batch has, at most one a row.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    low: float = 0.02
    high: float = 0.98
    strata: int = 8
    a: float = 1.0
    b: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1 or self.strata < 1 or min(self.a, self.b) <= 0:
            raise UsageError(f"times need 0 <= low < high <= 1, strata of 1 or more and a, b above 0, not {self}")

    def groups(self, schedule: NoiseSchedule, count: int, seed: int) -> list[Group]:
        """The levels of a batch of `count` rows; the same for the same seed."""
        strata = min(self.strata, count)
        generator = torch.Generator().manual_seed(seed)
        places = ((torch.arange(strata) + torch.rand(strata, generator=generator)) / strata).double()
        ends = [round(count * k / strata) for k in range(strata + 1)]
        shares = self.shares(places)
        levels = schedule.levels(schedule.T * (self.low + (self.high - self.low) * shares))
        return [Group(range(ends[k], ends[k + 1]), levels[k], float(places[k])) for k in range(strata)]

    def shares(self, places: torch.Tensor) -> torch.Tensor:
        """Quantiles of Beta(a, b)."""
        if self.a == self.b == 1:
            return places
        return torch.as_tensor([beta_quantile(float(p), self.a, self.b) for p in places], dtype=torch.float64)
