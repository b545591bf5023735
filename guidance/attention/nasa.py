"""NASA, negative-away steer attention: Nguyen et al. 2024, arXiv 2412.02687, eq. 9."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .negative import NegativeAttention, NegativePatch, Text


@dataclass(frozen=True)
class NASA(NegativeAttention):
    """In each cross-attention Z = Z+ - weight Z-, before the output projection: for one- and few-step models.

    weight: 0 is off; the authors use 0.1 (SD 1.5), 0.2 (SD 2.1), 0.5 to 1 (PixArt). Beyond 1 the negative prompt
    dominates. An empty negative prompt is not nothing: switch the rule off instead.
    """

    weight: float = 0.2

    @property
    def off(self) -> bool:
        return self.weight == 0

    def patch(self, text: Text | None) -> SteeredAway:
        return SteeredAway(self.layers, text, self.weight)


@dataclass(frozen=True)
class SteeredAway(NegativePatch):
    """Z+ - weight Z-."""

    weight: float = 0.2

    def combined(self, towards: Tensor, away: Tensor) -> Tensor:
        return towards - self.weight * away
