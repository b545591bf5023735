"""How many generated points are their own, and not copies of training points.

Alaa, van Breugel, Saveliev & van der Schaar 2022, 2102.08921. For g with the nearest training point t,
g is authentic when t has another training point nearer than g:

    min over other training t' of |t - t'|  <  |g - t|
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..arrays import as_features, full_precision
from .clouds import BLOCK, Cloud
from .duplicates import duplicated_share
from .nearest import nearest_rows, same_features
from .neighbours import squared_radii
from .prdc import Radii, checked_radii


@dataclass(frozen=True)
class Authenticity:
    """value: percent of authentic points, 0 to 100.

    A training point with a copy has another one at distance 0, so whatever is merely near it is called authentic:
    the more duplicates in the training set, the less the number says.
    """

    value: float
    duplicates_train: float  # share of training rows that are copies of an earlier one
    n_train: int
    n_generated: int
    authentic: Tensor = field(repr=False)  # bool (M,)
    distances: Tensor = field(repr=False)  # float64 (M,), to the nearest training point
    nearest: Tensor = field(repr=False)  # int64 (M,), its row


def authenticity(*, train: Any, generated: Any, train_radii: Radii | None = None, block: int = BLOCK) -> Authenticity:
    """AuthPct of generated (M, D) by what it was trained on, train (N, D), N >= 2. Percent, higher is better.

    A test set in the place of `generated` gives the null value. Points far from everything are authentic as well: read
    it beside a measure of fidelity. train_radii: from `radii(train, k=1)`, when one training set serves many runs.
    """
    t, g = as_features(train, "train", 2), as_features(generated, "generated")
    same_features(train=t, generated=g)
    with full_precision(t.device):
        known = checked_radii(train_radii, t, 1, "train")
        cloud = Cloud(t)
        to_other = squared_radii(cloud, 1, block) if known is None else known.squared.to(t.device)
        found = nearest_rows(Cloud(g.to(t.device), cloud.centre), cloud, 1, block)
    distances, rows = found.distances[:, 0], found.indices[:, 0]
    authentic = to_other[rows].sqrt() < distances
    share = float(authentic.double().mean())
    return Authenticity(100 * share, duplicated_share(cloud.groups), len(t), len(g), authentic, distances, rows)
