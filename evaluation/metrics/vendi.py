"""Vendi score: how many entirely different pictures a set is worth, by the spectrum of its cosine similarities.

    exp(H_q(lambda)),  lambda the eigenvalues of K / n,  K_ij = x_i.y_j of unit rows
    H_1 = -sum l log l,   H_q = log(sum l^q) / (1 - q),   H_inf = -log max l

Friedman & Dieng 2022, 2210.02410; orders other than 1: Pasarkar & Dieng 2023, 2310.12952. It sees no real pictures:
noise is diverse. X X^T and X^T X have the same eigenvalues, so no more than min(n, D) are ever computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features, full_precision
from .directions import unit_rows

_EPS = torch.finfo(torch.float64).eps


@dataclass
class Directions:
    """Count and sum of outer products of unit rows, float64: all that the score needs when D < n."""

    n: int
    outer: Tensor  # (D, D)

    @classmethod
    def empty(cls, dimension: int, device: torch.device | str = "cpu") -> Directions:
        """Of no rows at all."""
        return cls(0, torch.zeros(dimension, dimension, dtype=torch.float64, device=device))

    @classmethod
    def of(cls, features: Any, batch: int = 4096) -> Directions:
        """Of all rows of features (N, D)."""
        rows = as_features(features, "features")
        directions = cls.empty(rows.shape[1], rows.device)
        for part in rows.split(batch):
            directions.update(part)
        return directions

    def update(self, features: Any) -> Directions:
        """Take in a batch (B, D) of any float dtype, which need not be normalised; returns itself."""
        rows = as_features(features, "features")
        if rows.shape[1] != len(self.outer):
            raise UsageError(f"features have {rows.shape[1]} columns, not {len(self.outer)}; use one extractor")
        with full_precision(rows.device):
            unit = unit_rows(rows)
            self.n, self.outer = self.n + len(rows), self.outer + unit.T @ unit
        return self

    def merge(self, other: Directions) -> Directions:
        """Of the rows of both; neither is changed."""
        return Directions(self.n + other.n, self.outer + other.outer.to(self.outer.device))


@dataclass(frozen=True)
class Vendi:
    """A Vendi score, from 1 (all alike) to `bound`. It grows with n: compare only sets of equal n."""

    value: float
    order: float
    n: int
    bound: int  # min(n, D)
    eigenvalues: Tensor = field(repr=False)  # of K / n, float64, ascending, sum 1; none that rounding made

    def of_order(self, order: float) -> Vendi:
        """The same set at another order, for nothing."""
        return Vendi(_score(self.eigenvalues, order), order, self.n, self.bound, self.eigenvalues)


@dataclass(frozen=True)
class VendiByClass:
    """The score within each class, and the mean over classes: diversity that the classes themselves do not explain."""

    classes: dict[Any, Vendi]  # by label, in sorted order

    @property
    def value(self) -> float:
        """Mean over classes. Classes of unequal n have unequal bounds: compare with real pictures of equal counts."""
        return float(np.mean([found.value for found in self.classes.values()]))


def vendi(features: Any, order: float = 1.0) -> Vendi:
    """Vendi score with the cosine kernel of features (N, D), or of their `Directions`; higher is more diverse.

    order: any number >= 0. 0 counts the directions that occur at all, 1 is the score as published, infinity sees only
    the most common one; small orders listen to rare pictures. Rows are divided by their length here.

    Costs N D min(N, D) flops and an eigenvalue problem of min(N, D), 1 s for 2048.
    """
    spectrum, n, width = _spectrum(features)
    return Vendi(_score(spectrum, order), order, n, min(n, width), spectrum)


def vendi_by_class(features: Any, labels: Sequence[Any] | np.ndarray, order: float = 1.0) -> VendiByClass:
    """The same within each class of features (N, D), by labels (N,) of any kind that sorts."""
    rows, names = as_features(features, "features"), np.asarray(labels)
    if names.shape != (len(rows),):
        raise UsageError(f"labels must be ({len(rows)},), one a row of features, got {names.shape}")
    found = {}
    for name in np.unique(names):
        members = torch.from_numpy(np.flatnonzero(names == name)).to(rows.device)
        found[name.item()] = vendi(rows[members], order)
    return VendiByClass(found)


def _spectrum(features: Any) -> tuple[Tensor, int, int]:
    """Eigenvalues of K / n above rounding, n and D."""
    if isinstance(features, Directions):
        directions = features
        if not directions.n:
            raise UsageError("a Vendi score needs one row and there are none; give more pictures")
        similarities, n, width = directions.outer, directions.n, len(directions.outer)
    else:
        rows = as_features(features, "features")
        n, width = rows.shape
        if n > width:
            similarities = Directions.of(rows).outer
        else:
            with full_precision(rows.device):
                unit = unit_rows(rows)
                similarities = unit @ unit.T
    with full_precision(similarities.device):
        values = torch.linalg.eigvalsh(similarities / n)
    kept = values[values > len(values) * _EPS * values[-1]]
    return kept / kept.sum(), n, width


def _score(eigenvalues: Tensor, order: float) -> float:
    if not order >= 0:
        raise UsageError(f"order={order} is no order of a Vendi score; use 1, or any number from 0 to infinity")
    if order == 0:
        return float(len(eigenvalues))
    if math.isinf(order):
        return 1 / float(eigenvalues[-1])
    logs = eigenvalues.log()
    if order == 1:
        return math.exp(-float((eigenvalues * logs).sum()))
    return math.exp(float((order * logs).logsumexp(0)) / (1 - order))
