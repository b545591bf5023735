"""Features divided by their length, and the mean of a stream of them, mergeable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features


def unit_rows(rows: Tensor, name: str = "features") -> Tensor:
    """Rows (N, D) over their Euclidean length, float64. A row of zeros has no direction: UsageError."""
    exact = rows.double()
    largest = exact.abs().amax(1, keepdim=True)  # so that no square under- or overflows
    if bool((largest == 0).any()):
        raise UsageError(f"{name} has rows of zeros, which have no direction; look for a dead network")
    exact = exact / largest
    return exact / exact.square().sum(1, keepdim=True).sqrt()


@dataclass
class MeanDirection:
    """Count and sum of unit rows, float64."""

    n: int
    total: Tensor  # (D,)

    @classmethod
    def empty(cls, dimension: int, device: torch.device | str = "cpu") -> MeanDirection:
        """Of no rows at all."""
        return cls(0, torch.zeros(dimension, dtype=torch.float64, device=device))

    @classmethod
    def of(cls, features: Any, batch: int = 4096) -> MeanDirection:
        """Of all rows of features (N, D)."""
        rows = as_features(features, "features")
        mean = cls.empty(rows.shape[1], rows.device)
        for part in rows.split(batch):
            mean.update(part)
        return mean

    @property
    def mean(self) -> Tensor:
        """(D,) float64, no longer than 1."""
        if not self.n:
            raise UsageError("a mean direction needs one row and there are none; give more pictures")
        return self.total / self.n

    def update(self, features: Any) -> MeanDirection:
        """Take in a batch (B, D) of any float dtype, which need not be normalised; returns itself."""
        rows = as_features(features, "features")
        if rows.shape[1] != len(self.total):
            raise UsageError(f"features have {rows.shape[1]} columns, not {len(self.total)}; use one extractor")
        self.n, self.total = self.n + len(rows), self.total + unit_rows(rows).sum(0)
        return self

    def merge(self, other: MeanDirection) -> MeanDirection:
        """Of the rows of both; neither is changed."""
        return MeanDirection(self.n + other.n, self.total + other.total.to(self.total.device))
