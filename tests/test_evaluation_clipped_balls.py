"""Clipped density and coverage: the definition, the null value, and what clipping is for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.evaluation.metrics.clipped_balls import clipped_balls, expected_clipped_coverage, good_share
from pilotage.evaluation.metrics.prdc import expected_coverage, prdc


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def squares(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([(row - b.double()).square().sum(1) for row in a.double()])


def loop(x: Tensor, y: Tensor, k: int) -> tuple[float, float, float]:
    own, cross = squares(x, x).fill_diagonal_(math.inf), squares(x, y)
    radius = own.kthvalue(k, 1).values
    capped = radius.clamp(max=float(np.median(radius.sqrt().numpy())) ** 2)
    apart = torch.minimum(own.kthvalue(k + 1, 1).values, capped.max())
    means = [
        ((cross < capped[:, None]).sum(0) / k).clamp(max=1).double().mean(),
        ((own < apart[:, None]).sum(0) / k).clamp(max=1).double().mean(),
        ((cross < radius[:, None]).sum(1) / k).clamp(max=1).double().mean(),
    ]
    return float(means[0]), float(means[1]), float(means[2])


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(
    ("x", "y"),
    [
        (normal(301, 16), 1.1 * normal(400, 16, seed=1)),
        (normal(200, 300), normal(150, 300, seed=1)),
        (normal(150, 5)[torch.arange(200) % 150], normal(150, 5, seed=1)[torch.arange(220) % 150]),
        tuple(torch.from_numpy(np.random.default_rng(s).integers(0, 4, (300, 4))).float() for s in (0, 1)),
    ],
)
def test_raw_means_are_those_of_a_loop(x: Tensor, y: Tensor, k: int) -> None:
    try:
        found = clipped_balls(real=x, generated=y, k=k, block=128)
    except UsageError as error:
        assert "copies" in str(error) and loop(x, y, k)[1] == 0
        return
    raw = found.raw_density, found.raw_density_of_real, found.raw_coverage
    assert raw == pytest.approx(loop(x, y, k), rel=1e-6)
    assert found.density == found.raw_density / found.raw_density_of_real


def test_expected_raw_coverage_is_exact() -> None:
    for n, m, d, k in [(150, 150, 3, 5), (120, 300, 8, 3), (200, 60, 2, 4)]:
        found = [
            clipped_balls(real=normal(n, d, seed=2 * s), generated=normal(m, d, seed=2 * s + 1), k=k).raw_coverage
            for s in range(30)
        ]
        assert abs(np.mean(found) - expected_clipped_coverage(n, m, k)) < 4 * np.std(found, ddof=1) / 30**0.5


def test_expected_raw_coverage_by_hand() -> None:
    assert expected_clipped_coverage(100, 80, 1) == pytest.approx(expected_coverage(100, 80, 1), rel=1e-12)
    # two real points and k = 1: the ball of each reaches the other; C generated ones before it, in any order
    assert expected_clipped_coverage(2, 1, 1) == pytest.approx(1 / 2)
    # k = 2 of N - 1 = 2 others and M = 1: of 3 places the generated one is before the last real one in 2
    assert expected_clipped_coverage(3, 1, 2) == pytest.approx(2 / 3 / 2)
    assert expected_clipped_coverage(50, 0, 3) == 0


def test_calibrated_values_say_the_share_that_is_good() -> None:
    x = normal(1500, 6)
    for share in (1.0, 0.6, 0.2):
        good = round(1500 * share)
        y = torch.cat([normal(good, 6, seed=1), 500 + normal(1500 - good, 6, seed=2)])
        found = clipped_balls(real=x, generated=y)
        assert found.density == pytest.approx(share, abs=0.06)
        assert found.coverage == pytest.approx(share, abs=0.08)
    for m in (0, 30, 100):
        assert good_share(expected_clipped_coverage(100, m, 5), 100, 100, 5) == pytest.approx(m / 100)


def test_a_hub_counts_once_and_an_outlier_has_a_small_ball() -> None:
    x = normal(600, 10)
    hub = torch.cat([0.05 * normal(300, 10, seed=1), 500 + normal(300, 10, seed=2)])  # half in the middle, half nowhere
    assert prdc(real=x, generated=hub).density > 1.5
    assert clipped_balls(real=x, generated=hub).raw_density <= 0.5  # no point counts for more than one
    outlier = torch.cat([x, torch.full((1, 10), 300.0)])  # its ball holds what lies about it, unless it is capped
    around = torch.full((300, 10), 300.0) + 5 * normal(300, 10, seed=3)
    assert prdc(real=outlier, generated=around).precision == 1
    assert clipped_balls(real=outlier, generated=around).raw_density == 0


def test_constant_features_are_refused() -> None:
    with pytest.raises(UsageError, match="copies"):
        clipped_balls(real=torch.ones(20, 3), generated=torch.ones(20, 3))
