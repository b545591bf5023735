"""The generated points most likely to be copies: far nearer to a training point than to any test point."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import as_features
from .clouds import BLOCK
from .nearest import nearest, same_features


class Suspects(NamedTuple):
    """The most suspicious first, all (count,). ratio: distance to the nearest training point over that to the nearest
    test point, 0 for a copy, about 1 for an honest sample of sets of one size; 1 where both distances are 0.
    """

    indices: Tensor  # int64, rows of generated
    ratio: Tensor  # float64
    nearest_train: Tensor  # int64, rows of train
    nearest_test: Tensor  # int64, rows of test
    distance_train: Tensor  # float64
    distance_test: Tensor  # float64


def suspects(*, train: Any, test: Any, generated: Any, count: int = 16, block: int = BLOCK) -> Suspects:
    """The `count` rows of generated (M, D) with the smallest |g - train| / |g - test|; fewer where M is smaller.

    train: (N, D), test: (L, D) that nobody trained on. Unequal N and L shift all ratios alike, not their order by much.
    """
    if count < 1:
        raise UsageError(f"count={count} shows nobody; use count=16")
    t, held, g = as_features(train, "train"), as_features(test, "test"), as_features(generated, "generated")
    same_features(train=t, test=held, generated=g)
    in_train, in_test = (nearest(queries=g, among=rows, block=block) for rows in (t, held))
    to_train, to_test = in_train.distances[:, 0], in_test.distances[:, 0].to(t.device)
    ratio = torch.where(to_train == to_test, torch.ones_like(to_train), to_train / to_test)
    chosen = ratio.argsort(stable=True)[:count]
    return Suspects(
        chosen,
        ratio[chosen],
        in_train.indices[chosen, 0],
        in_test.indices[chosen, 0],
        to_train[chosen],
        to_test[chosen],
    )
