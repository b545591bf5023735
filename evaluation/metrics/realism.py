"""How realistic each generated point is: how deep it lies in the ball of a real one.

Kynkaanniemi et al. 2019, 1904.06991, section 5. With r(x) the distance of x to its k-th nearest other real point,

    realism(y) = max r(x) / |y - x|        over the real x with r(x) <= the median of all radii

1 or more: y lies in one of these balls. The widest half of the balls is left out, since outliers have them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..arrays import full_precision, same_width
from .clouds import BLOCK, Cloud, squared_distances
from .neighbours import Pairs, close_pairs, near_lists
from .prdc import Radii, checked, checked_radii, radii


def realism(*, real: Any, generated: Any, k: int = 3, real_radii: Radii | None = None, block: int = BLOCK) -> Tensor:
    """Realism of each generated point, float64 (M,), 0 or more, higher is better; infinite on a real point itself.

    real: (N, D), generated: (M, D), N > k. real_radii: from `radii(real, k)`, when one reference serves many runs.
    """
    x, y = checked(real, "real", k), checked(generated, "generated", 0)
    same_width(x, y)
    squared = (checked_radii(real_radii, x, k) or radii(x, k, block=block)).squared.to(x.device)
    distances = squared.sqrt()
    ordered = distances.sort().values
    median = (ordered[(len(x) - 1) // 2] + ordered[len(x) // 2]) / 2
    kept = distances <= median
    with full_precision(x.device):
        balls = Cloud(x[kept])
        return _highest_ratio(Cloud(y.to(x.device), balls.centre), balls, balls.per_point(squared[kept]), block)


def _highest_ratio(y: Cloud, x: Cloud, squared: Tensor, block: int) -> Tensor:
    """float64 (M,): the largest sqrt(squared_i) / |y - x_i|."""
    pairs, _ = near_lists(y, x, 1, block).exact(all_of_them=True)
    best = squared.new_zeros(len(y)).scatter_reduce_(0, pairs.i, _ratio(squared[pairs.j], pairs.low), "amax")
    widest = 4 * sum(float(cloud.rounded(cloud.types[0]).norms.max()) for cloud in (x, y))
    for i in range(0, len(y), block):
        waiting: list[Pairs] = []
        for j in range(0, len(x), block):
            farthest = (squared.max() / best).nan_to_num(widest).clamp(max=widest)  # that a better ball can be
            pairs = close_pairs(y, x, (i, j), (farthest, torch.zeros_like(squared)), block**2 / 64, block)
            best.scatter_reduce_(0, pairs.i, _ratio(squared[pairs.j], pairs.high), "amax")
            waiting.append(pairs.where(_ratio(squared[pairs.j], pairs.low) > best[pairs.i]))
        for pairs in waiting:
            pairs = pairs.where(_ratio(squared[pairs.j], pairs.low) > best[pairs.i])
            exact = squared_distances(y, x, pairs.i, pairs.j)
            best.scatter_reduce_(0, pairs.i, _ratio(squared[pairs.j], exact), "amax")
    return best.sqrt()[y.point_of]


def _ratio(squared: Tensor, distance: Tensor) -> Tensor:
    """Squares over squares; infinite at distance 0."""
    return torch.where(distance > 0, squared / distance, torch.inf)
