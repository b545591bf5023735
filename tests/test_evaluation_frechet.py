"""Frechet distance: closed forms, invariances, all routes, and moments that merge without losing digits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.evaluation import Moments, frechet_distance, frechet_from_features, frechet_from_moments


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def with_moments(n: int, mean: Tensor, deviations: Tensor, seed: int) -> Tensor:
    """Rows whose sample mean and sample covariance diag(deviations^2) are exact."""
    x = normal(n, len(mean), seed=seed)
    x = x - x.mean(0)
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / (n - 1)), x.T, upper=False).T
    return whitened * deviations + mean


def by_cross_gram(x: Tensor, y: Tensor) -> float:
    a, b = x - x.mean(0), y - y.mean(0)
    scaled = a @ b.T / ((len(x) - 1) * (len(y) - 1)) ** 0.5
    spread = a.square().sum() / (len(x) - 1) + b.square().sum() / (len(y) - 1)
    return float((x.mean(0) - y.mean(0)).square().sum() + spread - 2 * torch.linalg.svdvals(scaled).sum())


def test_diagonal_gaussians_have_a_closed_form() -> None:
    """|mu_r - mu_g|^2 + sum (sigma_r - sigma_g)^2."""
    mean, a, b = normal(24, seed=1), normal(24, seed=2).abs() + 0.1, normal(24, seed=3).abs() + 0.1
    x, y = with_moments(200, torch.zeros_like(mean), a, 4), with_moments(300, mean, b, 5)
    expected = float(mean.square().sum() + (a - b).square().sum())
    assert frechet_distance(real=x, generated=y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(20, 15), (20, 400), (400, 20), (32, 33), (33, 33), (200, 300)])
def test_every_route_agrees_with_the_singular_values(n: int, m: int) -> None:
    x, y = normal(n, 32, seed=1), normal(m, 32, seed=2) @ normal(32, 32, seed=3) + 0.3
    expected = by_cross_gram(x, y)
    assert frechet_distance(real=x, generated=y) == pytest.approx(expected, rel=1e-9)
    moments = frechet_from_moments(real=Moments.of(x), generated=Moments.of(y))
    assert moments.value == pytest.approx(expected, rel=1e-8)
    assert moments.rank_real == min(n - 1, 32) and moments.rank_generated == min(m - 1, 32)


def test_routes_are_chosen_by_the_number_of_rows() -> None:
    x = normal(200, 16)
    assert frechet_from_features(real=x[:10], generated=x).route == "cross-gram"
    assert frechet_from_features(real=x, generated=x).route == "cholesky"
    x[:, 3] = 0  # a dead feature
    assert frechet_from_features(real=x, generated=x).route == "eigen"


def test_rotation_and_order_change_nothing() -> None:
    x, y = normal(120, 16, seed=1), normal(150, 16, seed=2) * 1.3 + 0.2
    value = frechet_distance(real=x, generated=y)
    rotation = torch.linalg.qr(normal(16, 16, seed=3)).Q
    order = torch.from_numpy(np.random.default_rng(4).permutation(150))
    assert frechet_distance(real=x @ rotation, generated=y @ rotation) == pytest.approx(value, rel=1e-10)
    assert frechet_distance(real=x, generated=y[order]) == pytest.approx(value, rel=1e-12)
    assert frechet_distance(real=y, generated=x) == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("rows", [10, 200])
def test_equal_sets_give_zero_within_the_stated_floor(rows: int) -> None:
    x = normal(rows, 32) * torch.logspace(-6, 3, 32, dtype=torch.float64)
    found = frechet_from_features(real=x, generated=x)
    assert abs(found.value) <= found.numerical_floor < 1e-6 * float(x.var(0).sum())


def test_constant_features_give_the_distance_of_the_means() -> None:
    ones = torch.ones(50, 4)
    for rows in (3, 50):
        assert frechet_distance(real=ones[:rows], generated=ones * 3) == pytest.approx(16.0)


def test_null_falls_as_one_over_n() -> None:
    values = []
    for n in (500, 1000, 2000):
        draws = [
            frechet_distance(real=normal(n, 32, seed=2 * s), generated=normal(n, 32, seed=2 * s + 1)) for s in range(4)
        ]
        values.append(n * float(np.mean(draws)))
    assert max(values) / min(values) < 1.15


def test_shards_merge_to_the_single_pass_with_a_large_offset() -> None:
    x = normal(1000, 16) + 1e6
    whole = Moments.of(x, batch=1000)
    streamed = Moments.empty(16)
    for part in x.split(37):
        streamed.update(part)
    shards = [Moments.of(part) for part in x.split(130)]
    merged = shards[0]
    for shard in shards[1:]:
        merged = merged.merge(shard)
    exact = np.cov((x - 1e6).numpy().T)
    for moments in (streamed, merged):
        assert moments.n == 1000
        assert torch.allclose(moments.mean, whole.mean, rtol=1e-12, atol=0)
        assert float((moments.M2 - whole.M2).abs().max() / whole.M2.abs().max()) < 1e-12
    assert np.abs(whole.covariance.numpy() - exact).max() < 1e-12
    one_pass = (x.T @ x - 1000 * torch.outer(x.mean(0), x.mean(0))) / 999  # what the peers do
    assert np.abs(one_pass.numpy() - exact).max() > 1e-3


def test_moments_survive_packing_and_take_in_nothing_by_merging_with_none() -> None:
    moments = Moments.of(normal(50, 6))
    again = Moments.unpacked(moments.packed())
    assert again.n == 50 and torch.equal(again.M2, moments.M2) and torch.equal(again.mean, moments.mean)
    assert moments.merge(Moments.empty(6)).n == Moments.empty(6).merge(moments).n == 50


def test_low_precision_features_are_summed_in_float64() -> None:
    x, y = normal(300, 8, seed=1).bfloat16(), normal(300, 8, seed=2).half()
    assert frechet_distance(real=x, generated=y) == frechet_distance(real=x.double(), generated=y.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert frechet_distance(real=x, generated=y) == frechet_distance(real=x.double(), generated=y.double())


def test_agrees_with_torchmetrics() -> None:
    image = pytest.importorskip("torchmetrics.image.fid")

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, pictures: Tensor) -> Tensor:
            return pictures.double().flatten(1) / 255

    theirs = image.FrechetInceptionDistance(feature=Flat(), normalize=False)
    theirs.set_dtype(torch.float64)
    rng = np.random.default_rng(0)
    real, made = (torch.from_numpy(rng.integers(low, 256, (300, 3, 2, 2), dtype=np.uint8)) for low in (0, 40))
    theirs.update(real, real=True)
    theirs.update(made, real=False)
    ours = frechet_distance(real=Flat()(real), generated=Flat()(made))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-6)


@pytest.mark.parametrize(
    ("real", "generated", "says"),
    [
        (torch.ones(3), torch.ones(3, 3), "shape"),
        (torch.ones(1, 3), torch.ones(3, 3), "real has 1 rows"),
        (torch.ones(3, 3), torch.ones(3, 4), "one extractor"),
        (torch.full((3, 3), float("nan")), torch.ones(3, 3), "not finite"),
    ],
)
def test_bad_features_are_refused_in_one_line(real: Tensor, generated: Tensor, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        frechet_distance(real=real, generated=generated)
    assert "\n" not in str(caught.value)


def test_order_of_arguments_is_by_keyword_only() -> None:
    with pytest.raises(TypeError):
        frechet_distance(torch.ones(3, 3), torch.ones(3, 3))  # type: ignore[misc]
