"""CMMD: against a loop, its first order, its null value, and mergeable means of directions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.evaluation.metrics.cmmd import cmmd, mean_difference
from pilotage.evaluation.metrics.directions import MeanDirection, unit_rows


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def by_loop(x: Tensor, y: Tensor, sigma: float, unbiased: bool) -> float:
    """1000 MMD^2 with exact sums, so that the cancellation of the three means costs nothing."""
    a, b = (rows.numpy() / np.linalg.norm(rows.numpy(), axis=1, keepdims=True) for rows in (x, y))

    def mean(p: np.ndarray, q: np.ndarray, pairs: int) -> float:
        own = p is q and unbiased
        values = [
            math.expm1(-float(((u - v) ** 2).sum()) / (2 * sigma**2))
            for (i, u), (j, v) in itertools.product(enumerate(p), enumerate(q))
            if not (own and i == j)
        ]
        return math.fsum(values) / pairs

    n, m = len(a), len(b)
    pairs = (n * (n - 1), m * (m - 1)) if unbiased else (n * n, m * m)
    return 1000 * (mean(a, a, pairs[0]) + mean(b, b, pairs[1]) - 2 * mean(a, b, n * m))


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("sigma", [10.0, 0.7])
def test_equals_the_loop(sigma: float, unbiased: bool) -> None:
    x, y = normal(21, 6, seed=1) * 40, normal(17, 6, seed=2) + 0.3
    found = cmmd(real=x, generated=y, sigma=sigma, unbiased=unbiased, block=8)
    assert found.value == pytest.approx(by_loop(x, y, sigma, unbiased), rel=1e-10)


@pytest.mark.parametrize("shift", [0.02, 0.1])
def test_is_nearly_the_distance_of_the_means(shift: float) -> None:
    """Ten times its square at sigma = 10, within 2 %."""
    x, y = normal(300, 64, seed=1) / 8 + 0.1, normal(250, 64, seed=2) / 8 + 0.1 + shift * normal(64, seed=3)
    found = cmmd(real=x, generated=y)
    means = [unit_rows(rows).mean(0) for rows in (x, y)]
    assert found.mean_difference == pytest.approx(10 * float((means[0] - means[1]).square().sum()), rel=1e-12)
    assert found.value == pytest.approx(found.mean_difference, rel=0.02)
    assert found.value != pytest.approx(found.mean_difference, rel=1e-6)


def test_loses_no_digits_to_cancellation() -> None:
    """With so wide a kernel only the means are left, and all kernel values agree in fourteen digits."""
    x, y = normal(60, 8, seed=1), normal(60, 8, seed=2) + 0.2
    found = cmmd(real=x, generated=y, sigma=1e7)
    assert found.value == pytest.approx(found.mean_difference, rel=1e-9, abs=0)
    entries = [
        torch.exp(-torch.cdist(a, b).square() / 2e14).mean()
        for a, b in itertools.product(map(unit_rows, (x, y)), repeat=2)
    ]
    naive = 1000 * float(entries[0] + entries[3] - entries[1] - entries[2])
    assert naive != pytest.approx(found.mean_difference, rel=1e-2, abs=0)


def test_the_null_value_is_the_mean_over_equal_distributions() -> None:
    found = [cmmd(real=normal(60, 8, seed=2 * s) + 1, generated=normal(30, 8, seed=2 * s + 1) + 1) for s in range(200)]
    values, nulls = np.array([f.value for f in found]), np.array([f.null for f in found])
    assert abs((values - nulls).mean()) < 3 * (values - nulls).std() / 200**0.5
    assert nulls.std() < 0.1 * nulls.mean()
    assert values.min() > 0


def test_unbiased_is_the_value_less_the_null() -> None:
    x, y = normal(40, 8, seed=1), normal(30, 8, seed=2) + 0.2
    biased, unbiased = cmmd(real=x, generated=y), cmmd(real=x, generated=y, unbiased=True)
    assert unbiased.value == pytest.approx(biased.value - biased.null, rel=1e-12) and unbiased.null == 0
    assert biased.standard_error == unbiased.standard_error > 0


def test_the_error_is_that_of_repeated_draws() -> None:
    found = [
        cmmd(real=normal(80, 8, seed=2 * s) + 1, generated=normal(60, 8, seed=2 * s + 1) + 1.6) for s in range(150)
    ]
    spread = np.std([f.value for f in found])
    assert 0.85 < np.mean([f.standard_error for f in found]) / spread < 1.5


def test_length_of_rows_and_order_do_not_matter() -> None:
    x, y = normal(30, 8, seed=1), normal(20, 8, seed=2) + 0.2
    lengths = normal(30, 1, seed=3).exp() * 1e150
    assert cmmd(real=x * lengths, generated=y.flip(0)).value == pytest.approx(
        cmmd(real=x, generated=y).value, rel=1e-10
    )


def test_shards_of_means_merge_to_one_pass_in_any_order() -> None:
    x, y = normal(100, 6, seed=1), normal(70, 6, seed=2) + 0.3
    whole = MeanDirection.of(x, batch=1000)
    shards = [MeanDirection.of(part) for part in x.split(13)]
    for order in (shards, shards[::-1], shards[3:] + shards[:3]):
        merged = MeanDirection.empty(6)
        for shard in order:
            merged = merged.merge(shard)
        assert merged.n == 100 and torch.allclose(merged.total, whole.total, rtol=1e-12, atol=1e-13)
        difference = mean_difference(real=merged, generated=MeanDirection.of(y))
        assert difference == pytest.approx(cmmd(real=x, generated=y).mean_difference, rel=1e-11)
    assert shards[0].n == 13  # merging changes neither
    streamed = MeanDirection.empty(6)
    for part in x.float().split(7):
        assert streamed.update(part) is streamed
    assert torch.allclose(streamed.mean, MeanDirection.of(x.float()).mean, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: cmmd(real=torch.zeros(3, 3), generated=torch.ones(3, 3)), "real has rows of zeros"),
        (lambda: cmmd(real=torch.ones(3, 3), generated=torch.ones(3, 4)), "one extractor"),
        (lambda: cmmd(real=torch.ones(3, 3), generated=torch.ones(3, 3), sigma=-1), "sigma=10"),
        (lambda: MeanDirection.empty(3).mean, "give more pictures"),
        (lambda: MeanDirection.empty(3).update(torch.ones(2, 4)), "one extractor"),
        (lambda: mean_difference(real=MeanDirection.empty(3), generated=MeanDirection.empty(4)), "one extractor"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
