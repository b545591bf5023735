"""What goes wrong while a divergence is lowered, noticed and said in one line: steps that were not finite, and weights
of the ratio that leave a batch to a few of its rows.

    effective = (sum h)^2 / (B sum h^2)      the share of B rows that as many equal weights would use (`ratio`)

A divergence that weights by a high power of the ratio, such as the forward KL, may follow the noise of single rows so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from ..training import guardrails
from ..training.guardrails import Notice

_CHANGE = "bring clip_low and clip_high nearer to 1, or take a softer divergence, such as softened"


@dataclass(frozen=True)
class Limits(guardrails.Limits):
    """not_finite: steps in a row that may fail. effective: the least effective share of a batch, 0 notices nothing; of
    a batch of B, where it is never below 1/B, it is 1.5/B at least. starved: updates in a row that may have less before
    it is said. evaluations: how many in a row may come while it is so before the run stops, 0 never stops.
    """

    effective: float = 0.05
    starved: int = 5
    evaluations: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.effective <= 1 or self.starved < 1 or self.evaluations < 0:
            raise UsageError("limits need effective from 0 to 1, starved of 1 or more, evaluations of 0 or more")


@dataclass
class Guard(guardrails.Guard):
    """Told of every step and update; says what is wrong. Its state is plain data, kept in the checkpoint."""

    limits: Limits = field(default_factory=Limits)
    starved: int = 0  # updates in a row with too small a share
    evaluations: int = 0  # in a row that came while it was so

    def recall(self, plain: Mapping[str, Any]) -> None:
        super().recall(plain)
        self.starved, self.evaluations = plain.get("starved", 0), plain.get("evaluations", 0)

    def weighed(self, effective: float, batch: int) -> list[Notice]:
        """An update's effective share of a batch of so many. One that is not finite makes the gradient so, which `step`
        is told."""
        if not math.isfinite(effective):
            return []
        if not self.limits.effective or effective >= max(self.limits.effective, 1.5 / batch):
            self.starved = self.evaluations = 0
            return []
        self.starved += 1
        return [self._notice()] if self.starved == self.limits.starved else []

    def looked(self) -> list[Notice]:
        """The student is looked at: what is seen while batches are starved is nothing to go back to."""
        if self.starved < self.limits.starved:
            return []
        self.evaluations += 1
        return [self._notice(stops=0 < self.limits.evaluations <= self.evaluations)]

    def _notice(self, stops: bool = False) -> Notice:
        text = f"a few rows of a batch have all the weight of the ratio, {self.starved} updates in a row"
        return Notice(f"{text}: {_CHANGE}", stops)
