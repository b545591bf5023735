"""Realism of single points, against the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.evaluation.metrics.prdc import radii
from pilotage.evaluation.metrics.realism import realism


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def loop(x: Tensor, y: Tensor, k: int) -> Tensor:
    def distances(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([(row - b.double()).square().sum(1).sqrt() for row in a.double()])

    radius = distances(x, x).fill_diagonal_(math.inf).kthvalue(k, 1).values
    kept = radius <= float(np.median(radius.numpy()))
    cross = distances(y, x[kept])
    return torch.where(cross > 0, radius[kept] / cross, math.inf).amax(1)


SETS = {
    "gaussians": (normal(301, 12), normal(200, 12, seed=1)),
    "many features": (normal(200, 700), normal(90, 700, seed=1)),
    "unequal radii": (normal(300, 6) * normal(300, 1, seed=2).exp(), 2 * normal(150, 6, seed=1)),
    "far away": (normal(200, 6), 1000 + normal(100, 6, seed=1)),
    "ties and copies": tuple(
        torch.from_numpy(np.random.default_rng(s).integers(0, 3, (250, 4))).float() for s in (0, 1)
    ),
    "no spread": (torch.ones(30, 3), torch.cat([torch.ones(2, 3), torch.zeros(2, 3)])),
}


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", SETS)
def test_equals_the_definition(name: str, k: int) -> None:
    x, y = SETS[name]
    found = realism(real=x, generated=y, k=k, block=128)
    assert found.dtype == torch.float64
    assert torch.allclose(found, loop(x, y, k), rtol=1e-13, atol=0)
    assert torch.equal(found, realism(real=x, generated=y, k=k, real_radii=radii(x, k)))


def test_near_points_are_more_realistic() -> None:
    x = normal(500, 8)
    steps = [realism(real=x, generated=scale * normal(200, 8, seed=1)).median() for scale in (0.5, 1, 2, 8)]
    assert steps == sorted(steps, reverse=True) and steps[0] > 1 > steps[-1]
    assert bool(realism(real=x, generated=x).isinf()[:10].any())


def test_radii_of_other_rows_are_refused() -> None:
    x = normal(50, 3)
    with pytest.raises(UsageError, match=r"radii\(real, k=3\)"):
        realism(real=x, generated=x, real_radii=radii(x, 5))
    with pytest.raises(UsageError, match="one extractor"):
        realism(real=x, generated=x[:, :2])
    with pytest.raises(UsageError, match="k=0"):
        realism(real=x, generated=x, k=0)
