"""Colour statistics against colorsys, NumPy and SciPy."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from pilotage.errors import UsageError
from pilotage.evaluation import Colour, colour_statistics, compare_colour, wasserstein
from pilotage.evaluation.arrays import as_pictures


def pictures(n: int = 5, size: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def one_colour(*rgb: int) -> np.ndarray:
    return np.full((1, 4, 4, 3), rgb, np.uint8)


def test_saturation_equals_colorsys() -> None:
    batch = pictures()
    found = colour_statistics(batch)
    for picture, saturation, weighted in zip(batch, found.saturation, found.weighted_saturation):
        hsv = np.array([colorsys.rgb_to_hsv(*(pixel / 255)) for pixel in picture.reshape(-1, 3)])
        assert saturation == pytest.approx(hsv[:, 1].mean(), abs=1e-12)
        assert weighted == pytest.approx((hsv[:, 1] * hsv[:, 2]).sum() / hsv[:, 2].sum(), abs=1e-12)


def test_known_colours() -> None:
    for rgb, saturation in [((255, 0, 0), 1), ((128, 128, 128), 0), ((0, 0, 0), 0), ((200, 100, 100), 0.5)]:
        found = colour_statistics(one_colour(*rgb))
        assert found.saturation[0] == saturation == found.weighted_saturation[0]
        assert found.contrast[0] == pytest.approx(0, abs=1e-12)
    assert colour_statistics(one_colour(255, 10, 10)).clipped[0] == 1
    assert colour_statistics(one_colour(254, 1, 10)).clipped[0] == 0


def test_contrast_is_the_deviation_of_the_luma() -> None:
    batch = pictures()
    luma = batch @ np.array([0.299, 0.587, 0.114]) / 255
    assert colour_statistics(batch).contrast == pytest.approx(luma.reshape(5, -1).std(1), abs=1e-12)
    halves = np.zeros((1, 2, 2, 3), np.uint8)
    halves[0, 0] = 255
    assert colour_statistics(halves).contrast[0] == pytest.approx(0.5)


def test_layout_and_batch_do_not_matter() -> None:
    batch = pictures()
    whole = colour_statistics(torch.from_numpy(batch).permute(0, 3, 1, 2))
    parts = Colour.joined(colour_statistics(batch[i : i + 2]) for i in range(0, 5, 2))
    assert len(parts) == 5
    for name in ("saturation", "weighted_saturation", "contrast", "clipped"):
        assert (getattr(whole, name) == getattr(parts, name)).all(), name


def test_wasserstein_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for n, m in [(50, 50), (50, 73), (1, 9)]:
        x, y = rng.normal(size=n), rng.normal(0.5, 2, m).round(1)
        assert wasserstein(real=x, generated=y) == pytest.approx(stats.wasserstein_distance(x, y), abs=1e-12)
    assert wasserstein(real=[1, 2], generated=[2, 1]) == 0


def test_difference_to_real() -> None:
    real, made = colour_statistics(pictures(200, seed=1)), colour_statistics(pictures(200, seed=2) // 2 + 64)
    found = compare_colour(real=real, generated=made)
    assert found["saturation"].difference.mean == pytest.approx(made.saturation.mean() - real.saturation.mean())
    assert found["saturation"].difference.high < 0 and found["contrast"].difference.high < 0
    assert found["saturation"].wasserstein >= abs(found["saturation"].difference.mean) - 1e-12
    same = compare_colour(real=real, generated=real)["contrast"]
    assert same.difference.mean == same.wasserstein == 0


def test_floats_need_a_range_and_are_rounded_half_to_even() -> None:
    values = torch.tensor([0.999, -0.01, 0.5, 1.2]).view(1, 1, 4, 1).expand(1, 3, 4, 1)
    with pytest.raises(UsageError, match="value_range"):
        as_pictures(values)
    assert as_pictures(values, (0, 1))[0, 0, :, 0].tolist() == [255, 0, 128, 255]
    assert as_pictures(values, (-1, 1))[0, 0, :, 0].tolist() == [255, 126, 191, 255]
    assert as_pictures(torch.full((1, 3, 1, 1), 0.5 / 255, dtype=torch.float64), (0, 1)).sum() == 0  # half to even
    with pytest.raises(UsageError, match="not finite"):
        as_pictures(values * float("nan"), (0, 1))


def test_large_pictures_and_many_are_those_alone() -> None:
    batch = pictures(3, 300)  # each more than is taken at once
    whole = colour_statistics(batch)
    luma = batch.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / 255
    assert whole.contrast == pytest.approx(luma.reshape(3, -1).std(1), abs=1e-12)
    assert (whole.clipped == ((batch == 0) | (batch == 255)).any(-1).reshape(3, -1).mean(1)).all()
    many = pictures(70, 32)  # more than 2^16 pixels together
    alone = Colour.joined(colour_statistics(many[i : i + 1]) for i in range(70))
    assert (colour_statistics(many).stacked() == alone.stacked()).all()
    assert colour_statistics(np.full((1, 256, 256, 3), 77, np.uint8)).contrast[0] == 0  # to the last bit
