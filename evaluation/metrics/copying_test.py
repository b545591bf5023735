"""A test for data copying: are generated points nearer to the training set than test points are?

Meehan, Chaudhuri & Dasgupta 2020, 2004.05675. Of the distances to the nearest training point, of generated points (m)
and of test points (n), Mann and Whitney's U counts the pairs in which the generated one is larger, ties as halves:

    Z = (U - m n / 2) / sqrt(m n / 12 * (m + n + 1 - sum_t (t^3 - t) / ((m + n)(m + n - 1))))

t are the sizes of groups of equal distances. Z << 0: copying; Z >> 0: underfitting; standard normal where neither.
C_T is the mean of Z over cells of space (k-means of the training set), weighted by their share of test points: a model
that copies in one region and underfits in another shows in the cells, not in the global Z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features, full_precision, mean_of_rows
from .clouds import BLOCK
from .kmeans import kmeans, nearest_centre
from .nearest import nearest, same_features
from .ratio_divergence import principal_axes


@dataclass(frozen=True)
class Cell:
    """One cell. z: nan where it has too few points to be judged."""

    z: float
    n_train: int
    n_test: int
    n_generated: int


@dataclass(frozen=True)
class CopyingTest:
    """value: C_T over the cells that can be judged; z: over all points at once; both about normal for honest models.

    p_value: of so small a z, one-sided. weakest: the smallest z of a cell, where copying is likeliest.
    """

    value: float
    z: float
    p_value: float
    weakest: float
    cells: tuple[Cell, ...]
    judged: float  # share of test points in judged cells
    dimension: int  # after PCA
    kept_variance: float
    n_train: int
    n_test: int
    n_generated: int
    seed: int


def copying_test(
    *,
    train: Any,
    test: Any,
    generated: Any,
    cells: int = 5,
    pca: int | None = 64,
    seed: int = 0,
    at_least: int = 20,
    block: int = BLOCK,
) -> CopyingTest:
    """C_T of generated (M, D) by train (N, D) and by test (L, D), which nobody trained on; near 0 is best.

    cells: k-means cells of the training set. pca: directions kept, fitted on train; None keeps all. at_least: points of
    test and of generated that a cell needs to be judged.
    """
    t, held, g = as_features(train, "train", 2), as_features(test, "test", 2), as_features(generated, "generated", 2)
    same_features(train=t, test=held, generated=g)
    _check(cells, pca, len(t))
    with full_precision(t.device):
        t, held, g, kept = _reduced(t, held.to(t.device), g.to(t.device), pca)
        of_test = nearest(queries=held, among=t, block=block).distances[:, 0]
        of_generated = nearest(queries=g, among=t, block=block).distances[:, 0]
        centres = kmeans(t, cells, seed)
        places = [nearest_centre(rows, centres) for rows in (t, held, g)]
    found = _by_cell(places, of_test, of_generated, cells, at_least)
    judged = [cell for cell in found if not math.isnan(cell.z)]
    weight = sum(cell.n_test for cell in judged)
    z = mann_whitney_z(of_generated, of_test)
    return CopyingTest(
        value=sum(cell.z * cell.n_test for cell in judged) / weight if weight else math.nan,
        z=z,
        p_value=math.erfc(-z / math.sqrt(2)) / 2,
        weakest=min((cell.z for cell in judged), default=math.nan),
        cells=found,
        judged=weight / len(held),
        dimension=t.shape[1],
        kept_variance=kept,
        n_train=len(t),
        n_test=len(held),
        n_generated=len(g),
        seed=seed,
    )


def mann_whitney_z(a: Tensor, b: Tensor) -> float:
    """Z of the number of pairs with a (m,) above b (n,), ties as halves and the variance corrected; 0 if all tie."""
    m, n = len(a), len(b)
    _, place, sizes = torch.cat([a, b]).unique(return_inverse=True, return_counts=True)
    sizes = sizes.double()
    ranks = (sizes.cumsum(0) - (sizes - 1) / 2)[place[:m]]  # of a group of ties, the mean of its ranks
    u = float(ranks.sum()) - m * (m + 1) / 2
    ties = float((sizes**3 - sizes).sum()) / ((m + n) * (m + n - 1))
    variance = m * n / 12 * (m + n + 1 - ties)
    return (u - m * n / 2) / math.sqrt(variance) if variance > 0 else 0.0


def _by_cell(
    places: list[Tensor], of_test: Tensor, of_generated: Tensor, cells: int, at_least: int
) -> tuple[Cell, ...]:
    """The test within each cell; places: the cell of each point of train, test and generated."""
    found = []
    for cell in range(cells):
        in_train, in_test, in_generated = (place == cell for place in places)
        counts = [int(chosen.sum()) for chosen in (in_train, in_test, in_generated)]
        enough = min(counts[1:]) >= at_least
        z = mann_whitney_z(of_generated[in_generated], of_test[in_test]) if enough else math.nan
        found.append(Cell(z, *counts))
    return tuple(found)


def _reduced(t: Tensor, held: Tensor, g: Tensor, pca: int | None) -> tuple[Tensor, Tensor, Tensor, float]:
    """The three sets in float64 and few directions, and the share of the variance of train within them."""
    if pca is None or pca >= t.shape[1]:
        return t.double(), held.double(), g.double(), 1.0
    axes, kept = principal_axes(t, pca)
    centre = mean_of_rows(t)
    t, held, g = (torch.cat([(p.double() - centre) @ axes for p in rows.split(1024)]) for rows in (t, held, g))
    return t, held, g, kept


def _check(cells: int, pca: int | None, n_train: int) -> None:
    if not 1 <= cells <= n_train:
        raise UsageError(f"cells={cells} of {n_train} training points; use cells=5")
    if pca is not None and pca < 1:
        raise UsageError(f"pca={pca} keeps nothing; use pca=64, or pca=None for all directions")
