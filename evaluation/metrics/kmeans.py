"""k-means: cells of a set of points, the same for the same seed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_ROWS = 4096


def kmeans(points: Tensor, cells: int, seed: int = 0, rounds: int = 50) -> Tensor:
    """Centres, float64 (cells, D), of points float64 (N, D), N >= cells. A cell that is left empty keeps its centre.

    First centres by squared distance (Arthur & Vassilvitskii 2007, k-means++), then Lloyd's rounds until nobody moves.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    centres = _first_centres(points, cells, generator)
    before = None
    for _ in range(rounds):
        cell = nearest_centre(points, centres)
        if before is not None and torch.equal(cell, before):
            break
        before = cell
        count = torch.bincount(cell, minlength=cells)
        total = torch.zeros_like(centres).index_add_(0, cell, points)
        centres = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], centres)
    return centres


def nearest_centre(points: Tensor, centres: Tensor) -> Tensor:
    """int64 (N,): the cell of each point."""
    return torch.cat([_distances(part, centres).argmin(1) for part in points.split(_ROWS)])


def _first_centres(points: Tensor, cells: int, generator: np.random.Generator) -> Tensor:
    chosen = [int(generator.integers(len(points)))]
    squared = _distances(points, points[chosen]).square()[:, 0]
    while len(chosen) < cells:
        total = squared.cumsum(0)
        place = int(torch.searchsorted(total, generator.random() * float(total[-1]), right=True))
        chosen.append(min(place, len(points) - 1))
        squared = torch.minimum(squared, _distances(points, points[chosen[-1:]]).square()[:, 0])
    return points[chosen].clone()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
