"""Mean and covariance of a stream of features, mergeable between batches, processes and machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features, full_precision


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of features, float64.

    Chan, Golub & LeVeque 1979, eq. 2.1: M2 += M2_b + d d^T n_a n_b / (n_a + n_b), d the difference of the means.
    The mean is kept as origin + offset, the origin near the data: a common offset of 1e6 costs no digits.
    """

    n: int
    origin: Tensor  # (D,), a point near the data
    offset: Tensor  # (D,), mean less origin
    M2: Tensor  # (D, D), sum of (x - mean)(x - mean)^T

    @classmethod
    def empty(cls, dimension: int, device: torch.device | str = "cpu") -> Moments:
        """Of no rows at all."""
        zeros = torch.zeros(dimension, dtype=torch.float64, device=device)
        return cls(0, zeros, zeros.clone(), zeros.new_zeros(dimension, dimension))

    @classmethod
    def of(cls, features: Any, batch: int = 4096) -> Moments:
        """Of all rows of features (N, D)."""
        rows = as_features(features, "features")
        moments = cls.empty(rows.shape[1], rows.device)
        for part in rows.split(batch):
            moments.update(part)
        return moments

    @property
    def mean(self) -> Tensor:
        """(D,) float64."""
        return self.origin + self.offset

    @property
    def covariance(self) -> Tensor:
        """(D, D) float64, divided by n - 1."""
        if self.n < 2:
            raise UsageError(f"a covariance needs 2 rows and there are {self.n}; give more pictures")
        return self.M2 / (self.n - 1)

    def update(self, features: Any) -> Moments:
        """Take in a batch (B, D) of any float dtype; returns itself."""
        rows = as_features(features, "features")
        if rows.shape[1] != len(self.origin):
            raise UsageError(f"features have {rows.shape[1]} columns, not {len(self.origin)}; use one extractor")
        with full_precision(rows.device):
            origin = self.origin if self.n else rows[0].double()
            shifted = rows.double() - origin
            offset = shifted.mean(0)
            shifted -= offset
            merged = self.merge(Moments(len(rows), origin, offset, shifted.T @ shifted))
        self.n, self.origin, self.offset, self.M2 = merged.n, merged.origin, merged.offset, merged.M2
        return self

    def merge(self, other: Moments) -> Moments:
        """Of the rows of both; neither is changed."""
        if not (self.n and other.n):
            return self if self.n else other
        n = self.n + other.n
        d = (other.origin - self.origin) + (other.offset - self.offset)
        M2 = self.M2 + other.M2 + torch.outer(d, d) * (self.n * other.n / n)
        return Moments(n, self.origin, self.offset + d * (other.n / n), M2)

    def packed(self) -> Tensor:
        """One float64 vector (1 + 2 D + D^2,), for sending and saving."""
        n = self.offset.new_tensor([float(self.n)])
        return torch.cat([n, self.origin, self.offset, self.M2.flatten()])

    @classmethod
    def unpacked(cls, vector: Tensor) -> Moments:
        """The inverse of `packed`."""
        dimension = round(len(vector) ** 0.5) - 1  # 1 + 2 D + D^2 = (D + 1)^2
        n, origin, offset, M2 = vector.split([1, dimension, dimension, dimension**2])
        return cls(int(n), origin, offset, M2.view(dimension, dimension))
