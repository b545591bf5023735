"""Kernel distance: against loops over pairs, torchmetrics, the average over data sets, and deleted rows one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.evaluation.metrics.kernel_distance import kernel_distance, polynomial
from pilotage.evaluation.metrics.kernel_sums import KernelSums


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def cube(x: np.ndarray, y: np.ndarray) -> float:
    return (float(x @ y) / len(x) + 1) ** 3


def bell(x: np.ndarray, y: np.ndarray) -> float:
    return math.exp(-float(((x - y) ** 2).sum()) / (2 * 1.5**2))


def by_loop(x: Tensor, y: Tensor, kernel) -> float:
    """Pair by pair."""
    a, b = x.numpy(), y.numpy()
    n, m = len(a), len(b)
    within = [
        sum(kernel(p, q) for i, p in enumerate(rows) for j, q in enumerate(rows) if i != j)
        / (len(rows) ** 2 - len(rows))
        for rows in (a, b)
    ]
    return sum(within) - 2 * sum(kernel(p, q) for p in a for q in b) / (n * m)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (23, 31), (40, 16)])
@pytest.mark.parametrize(("name", "kernel"), [("polynomial", cube), ("rbf", bell)])
@pytest.mark.parametrize("block", [7, 1024])
def test_full_is_the_sum_over_all_pairs(n: int, m: int, name, kernel, block: int) -> None:
    x, y = normal(n, 5, seed=1), normal(m, 5, seed=2) * 1.3 + 0.2
    found = kernel_distance(real=x, generated=y, kernel=name, sigma=1.5, block=block)
    assert found.value == pytest.approx(by_loop(x, y, kernel), rel=1e-12, abs=1e-13)
    assert (found.n_real, found.n_generated, found.null, found.seed) == (n, m, 0.0, None)


def test_agrees_with_torchmetrics_when_its_subset_is_the_whole() -> None:
    image = pytest.importorskip("torchmetrics.image.kid")

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, pictures: Tensor) -> Tensor:
            return pictures.double().flatten(1) / 64

    theirs = image.KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=90)
    theirs.set_dtype(torch.float64)
    rng = np.random.default_rng(0)
    real, made = (torch.from_numpy(rng.integers(low, 256, (90, 3, 2, 2), dtype=np.uint8)) for low in (0, 40))
    theirs.update(real, real=True)
    theirs.update(made, real=False)
    for how in ({}, {"estimator": "subsets", "subsets": 1, "subset_size": 90}):
        ours = kernel_distance(real=Flat()(real), generated=Flat()(made), **how)
        assert ours.value == pytest.approx(float(theirs.compute()[0]), rel=1e-6)  # theirs comes back in float32


@pytest.mark.parametrize("how", [{}, {"estimator": "subsets", "subsets": 5, "subset_size": 20}])
def test_equal_distributions_give_zero_on_average(how: dict) -> None:
    values = [
        kernel_distance(real=normal(60, 8, seed=2 * s), generated=normal(40, 8, seed=2 * s + 1), **how).value
        for s in range(200)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / 200**0.5
    assert min(values) < 0  # not clamped


def test_the_jackknife_is_that_of_rows_deleted_one_by_one() -> None:
    x, y = normal(14, 3, seed=1), normal(11, 3, seed=2) + 0.5

    def distance(a: Tensor, b: Tensor) -> float:
        return kernel_distance(real=a, generated=b).value

    without_x = np.array([distance(torch.cat([x[:i], x[i + 1 :]]), y) for i in range(14)])
    without_y = np.array([distance(x, torch.cat([y[:i], y[i + 1 :]])) for i in range(11)])
    variance = sum((len(v) - 1) / len(v) * ((v - v.mean()) ** 2).sum() for v in (without_x, without_y))
    assert kernel_distance(real=x, generated=y).standard_error == pytest.approx(variance**0.5, rel=1e-10)


def expected_kernel(a: Tensor, b: Tensor) -> float:
    """Mean of (x.y / D + 1)^3 for independent x ~ N(a, I) and y ~ N(b, I), by the moments of x.y given y."""
    ab, aa, bb, d = float(a @ b), float(a @ a), float(b @ b), len(a)
    square = ab**2 + aa + bb + d
    third = ab**3 + 3 * ab * aa + 3 * (ab * (bb + d) + 2 * ab)
    return third / d**3 + 3 * square / d**2 + 3 * ab / d + 1


def test_the_average_is_the_closed_form_and_the_intervals_hold_it() -> None:
    a, b = torch.zeros(8).double(), torch.full((8,), 0.5).double()
    truth = expected_kernel(a, a) + expected_kernel(b, b) - 2 * expected_kernel(a, b)
    for how in ({}, {"estimator": "subsets", "subsets": 30, "subset_size": 40}):
        found = [
            kernel_distance(real=normal(150, 8, seed=2 * s), generated=normal(120, 8, seed=2 * s + 1) + 0.5, **how)
            for s in range(150)
        ]
        values = np.array([f.value for f in found])
        assert abs(values.mean() - truth) < 3 * values.std() / 150**0.5
        assert np.mean([f.interval[0] <= truth <= f.interval[1] for f in found]) > 0.9
        assert 0.85 < np.mean([f.standard_error for f in found]) / values.std() < 1.4


def test_the_deviation_over_subsets_is_named_apart_from_the_error() -> None:
    x, y = normal(400, 6, seed=1), normal(400, 6, seed=2) + 0.3
    small, large = (
        kernel_distance(real=x, generated=y, estimator="subsets", subset_size=size, subsets=60) for size in (40, 200)
    )
    full = kernel_distance(real=x, generated=y)
    assert small.subset_std == pytest.approx(np.std(small.subset_values), rel=1e-12) and full.subset_std is None
    assert small.subset_std > 2 * small.standard_error  # 1 / sqrt(10) at best
    for found in (small, large):  # whatever the size of the subsets, the error is that of 400 rows
        assert 0.8 < found.standard_error / full.standard_error < 1.8
        assert abs(found.value - full.value) < full.standard_error


def test_subsets_repeat_with_their_seed_and_leave_global_generators_alone() -> None:
    x, y = normal(80, 4, seed=1), normal(80, 4, seed=2)

    def value(seed: int) -> float:
        return kernel_distance(real=x, generated=y, estimator="subsets", subset_size=30, subsets=4, seed=seed).value

    torch.manual_seed(5)
    before, legacy = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert value(3) == value(3) != value(4)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (legacy == np.random.get_state()[1]).all()  # noqa: NPY002


def test_few_rows_lower_the_subset_size_and_say_so() -> None:
    found = kernel_distance(real=normal(90, 4), generated=normal(50, 4, seed=1), estimator="subsets", subsets=10)
    assert found.subset_size == 25 and "lowered to 25" in found.notes[0] and found.standard_error > 0
    whole = kernel_distance(real=normal(50, 4), generated=normal(50, 4), estimator="subsets", subset_size=50, subsets=3)
    assert whole.subset_size == 50 and not whole.notes and math.isnan(whole.standard_error)
    assert np.ptp(whole.subset_values) < 1e-12  # equal subsets do not look like certainty


def test_two_rows_have_a_value_and_no_error() -> None:
    found = kernel_distance(real=normal(2, 4), generated=normal(5, 4, seed=1))
    assert math.isfinite(found.value) and math.isnan(found.standard_error) and math.isnan(found.interval[0])


def test_a_common_offset_costs_the_rbf_kernel_no_digits() -> None:
    x, y = normal(50, 6, seed=1), normal(50, 6, seed=2) + 0.4
    near = kernel_distance(real=x, generated=y, kernel="rbf", sigma=2.0).value
    far = kernel_distance(real=x + 2.0**20, generated=y + 2.0**20, kernel="rbf", sigma=2.0).value
    assert far == pytest.approx(near, rel=1e-7)


def test_row_sums_leave_out_the_row_itself() -> None:
    x, y = normal(9, 3, seed=1), normal(5, 3, seed=2)
    sums = KernelSums.of(x, y, polynomial(3), block=4)
    own = (x @ x.T / 3 + 1) ** 3
    across = (x @ y.T / 3 + 1) ** 3
    assert torch.allclose(sums.real, own.sum(1) - own.diagonal(), rtol=1e-13)
    assert torch.allclose(sums.real_across, across.sum(1), rtol=1e-13)
    assert torch.allclose(sums.generated_across, across.sum(0), rtol=1e-13)


def test_low_precision_features_are_multiplied_in_float64() -> None:
    x, y = normal(40, 8, seed=1).bfloat16(), normal(40, 8, seed=2).half().requires_grad_()
    exact = kernel_distance(real=x.double(), generated=y.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert kernel_distance(real=x, generated=y).value == exact.value


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"estimator": "blocks"}, "'full' or 'subsets'"),
        ({"kernel": "linear"}, "'polynomial' or 'rbf'"),
        ({"kernel": "rbf", "sigma": 0.0}, "above 0"),
        ({"estimator": "subsets", "subset_size": 1}, "subset_size=1000"),
        ({"real": torch.ones(1, 3)}, "real has 1 rows"),
        ({"generated": torch.ones(3, 4)}, "one extractor"),
    ],
)
def test_bad_input_is_refused_in_one_line(settings: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        kernel_distance(**{"real": torch.ones(3, 3), "generated": torch.ones(3, 3), **settings})
    assert "\n" not in str(caught.value)
