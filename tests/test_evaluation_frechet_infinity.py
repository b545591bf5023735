"""Frechet distance without its bias: the line, the null value on both sides, independent subsets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import linregress
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.evaluation.metrics import frechet_infinity as module
from pilotage.evaluation.metrics.frechet import frechet_distance
from pilotage.evaluation.metrics.frechet_infinity import FrechetInfinity, frechet_infinity


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def draws(n: int, m: int, width: int, scale: float = 1.0, times: int = 12, **how) -> list[FrechetInfinity]:
    return [
        frechet_infinity(real=normal(n, width, seed=2 * s), generated=normal(m, width, seed=2 * s + 1) * scale, **how)
        for s in range(times)
    ]


@pytest.mark.parametrize(("n", "m"), [(600, 600), (1000, 400)])
@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_both_sides_remove_the_bias(n: int, m: int, scale: float) -> None:
    """D (scale - 1)^2 for two round Gaussians, whatever the sizes."""
    truth = 16 * (scale - 1) ** 2
    found = draws(n, m, 16, scale)
    values, whole = np.array([f.value for f in found]), np.mean([f.distances[-1] for f in found])
    assert abs(values.mean() - truth) < 3 * values.std() / 12**0.5 + 0.02 * (whole - truth)
    assert abs(values.mean() - truth) < 0.3 * (whole - truth)


def test_the_generated_side_alone_leaves_half_of_the_bias() -> None:
    found = draws(600, 600, 16, sides="generated")
    share = np.mean([f.value for f in found]) / np.mean([f.distances[-1] for f in found])
    assert 0.35 < share < 0.65
    assert found[0].rows_real == (600,) * 15 and "bias of the real set" in found[0].notes[0]


def test_the_line_is_that_of_least_squares_over_one_over_n() -> None:
    found = frechet_infinity(real=normal(300, 8), generated=normal(150, 8, seed=1) + 0.1, points=9)
    inverse = [(1 / n + 1 / m) / 2 for n, m in zip(found.rows_real, found.rows_generated)]
    line = linregress(inverse, found.distances)
    assert found.value == pytest.approx(line.intercept, rel=1e-10)
    assert found.slope == pytest.approx(line.slope, rel=1e-10)
    assert found.standard_error == pytest.approx(line.intercept_stderr, rel=1e-8)
    residuals = np.array(found.distances) - line.intercept - line.slope * np.array(inverse)
    assert found.residual_error == pytest.approx((residuals**2).sum() ** 0.5 / 7**0.5, rel=1e-8)


def test_sizes_are_equally_spaced_and_end_with_the_whole() -> None:
    x, y = normal(1000, 6), normal(500, 6, seed=1)
    found = frechet_infinity(real=x, generated=y)
    assert found.rows_real[0] == 100 and found.rows_generated[0] == 50 and len(found.distances) == 15
    assert np.ptp(np.diff(found.rows_real)) <= 1 and np.ptp(np.diff(found.rows_generated)) <= 1
    assert found.distances[-1] == pytest.approx(frechet_distance(real=x, generated=y), rel=1e-12) and not found.notes
    assert (
        frechet_infinity(real=x[:, :6].repeat(1, 5) + normal(1000, 30), generated=normal(1000, 30)).rows_real[0] == 120
    )


def test_subsets_are_independent_draws_without_replacement() -> None:
    rows = torch.arange(200, dtype=torch.float64)[:, None].repeat(1, 2)
    seen: list[Tensor] = []

    class Spy(module.Moments):
        @classmethod
        def of(cls, features, batch: int = 4096):
            seen.append(features[:, 0])
            return super().of(features + normal(len(features), 2, seed=len(seen)), batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Moments", Spy)
        frechet_infinity(real=rows, generated=rows, points=4)
    assert [len(part) for part in seen] == [20, 20, 80, 80, 140, 140, 200, 200]
    assert all(len(part.unique()) == len(part) for part in seen)
    small, larger = seen[0].numpy(), seen[2].numpy()
    assert 0 < len(np.intersect1d(small, larger)) < 16  # 8 expected; 20 if the larger held the smaller
    assert not np.array_equal(seen[0], seen[1])


def test_a_whole_real_set_has_its_moments_taken_once() -> None:
    counts: list[int] = []

    class Spy(module.Moments):
        @classmethod
        def of(cls, features, batch: int = 4096):
            counts.append(len(features))
            return super().of(features, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Moments", Spy)
        frechet_infinity(real=normal(300, 4), generated=normal(100, 4, seed=1), sides="generated", points=5)
    assert counts.count(300) == 1 and len(counts) == 6


def test_few_rows_a_feature_go_through_the_rows_and_are_noted() -> None:
    x, y = normal(40, 32), normal(40, 32, seed=1)
    found = frechet_infinity(real=x, generated=y)
    assert found.rows_real[0] == 20 and "the intercept is off" in found.notes[0]
    assert found.distances[-1] == pytest.approx(frechet_distance(real=x, generated=y), rel=1e-12)


def test_repeats_with_its_seed() -> None:
    x, y = normal(200, 4), normal(200, 4, seed=1)
    first, again, other = (frechet_infinity(real=x, generated=y, seed=seed) for seed in (3, 3, 4))
    assert first == again and first.distances[0] != other.distances[0] and first.distances[-1] == other.distances[-1]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sides": "real"}, "'both' or 'generated'"),
        ({"points": 2}, "points=15"),
        ({"real": torch.ones(19, 3)}, "at least 20"),
        ({"generated": torch.ones(30, 4)}, "one extractor"),
    ],
)
def test_bad_input_is_refused_in_one_line(settings: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        frechet_infinity(**{"real": torch.ones(30, 3), "generated": torch.ones(30, 3), **settings})
    assert "\n" not in str(caught.value)
