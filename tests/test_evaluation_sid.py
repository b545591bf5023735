"""Signed Inception Distance: signs, a loop, the null value where pictures are few, and intervals that hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.evaluation.metrics.sid import ORDERS, sid

FEW = (1, 5, 12)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("order", ORDERS)
def test_spread_is_positive_and_collapse_negative(order: int) -> None:
    x, y = normal(400, 64, seed=1), normal(400, 64, seed=2)
    wide, narrow, beside, null = (
        sid(real=x, generated=made, order=order, queries=128) for made in (1.5 * y, 0.5 * y, y + 0.5, y)
    )
    assert wide.interval[0] > 0 and beside.interval[0] > 0 and narrow.interval[1] < 0
    assert null.interval[0] < 0 < null.interval[1]
    assert len(wide.by_radius) == 49 and sum(wide.by_radius) == pytest.approx(wide.value, rel=1e-10)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("n", "m"), [(12, 9), (530, 40)])
def test_equals_a_loop_over_queries(order: int, n: int, m: int) -> None:
    x, y = normal(n, 5, seed=1) * 3 + 7, normal(m, 5, seed=2) * 4 + 8
    found = sid(real=x, generated=y, order=order, radii=FEW, queries=6, seed=3)
    a, b, mean = x.numpy(), y.numpy(), x.numpy().mean(0)
    assert found.half_width == pytest.approx(0.25 * a.std(0, ddof=1).mean(), rel=1e-12)
    distances = np.sort(np.linalg.norm(a - mean, axis=1))
    assert found.scale == pytest.approx(distances[(n - 1) // 2], rel=1e-12)
    own = mean + (a - mean) * n / (n - 1)  # x_i less the mean of the others
    assert np.allclose((own - mean)[0], a[0] - np.delete(a, 0, 0).mean(0), rtol=1e-12)
    cube = np.random.default_rng(3).uniform(-found.half_width, found.half_width, (6, 5))
    sign, total = (1 if order > 0 else -1), []
    for radius in FEW:
        difference = [
            sign * np.mean((np.linalg.norm(rows - mean - radius * u, axis=1) / found.scale) ** order)
            for rows in (b, own)
            for u in cube
        ]
        total.append(np.mean(difference[:6]) - np.mean(difference[6:]))
    assert found.by_radius == pytest.approx(total, rel=1e-9)
    assert found.value == pytest.approx(sum(total), rel=1e-9)


@pytest.mark.parametrize(("n", "m", "width"), [(60, 60, 500), (40, 120, 30)])
@pytest.mark.parametrize("order", [1, -3])
def test_equal_distributions_give_zero_and_intervals_that_hold_it(n: int, m: int, width: int, order: int) -> None:
    """Also where D > N; there a plain mean as centre would put every value below its own error."""
    found = [
        sid(
            real=normal(n, width, seed=2 * s),
            generated=normal(m, width, seed=2 * s + 1),
            order=order,
            radii=FEW,
            queries=64,
            seed=s,
        )
        for s in range(80)
    ]
    values = np.array([f.value for f in found])
    assert abs(values.mean()) < 3 * values.std() / 80**0.5
    assert np.mean([f.interval[0] <= 0 <= f.interval[1] for f in found]) > 0.87
    if width > n:  # of_real is proportional to ((N - 1) / N)^q with the plain mean, to first order
        plain = [f.of_generated.mean() - f.of_real.mean() * (1 - 1 / n) ** order for f in found]
        assert np.mean(plain) > 1.5 * values.std()


def test_the_unit_of_the_features_does_not_matter() -> None:
    x, y = normal(80, 20, seed=1), normal(70, 20, seed=2) * 1.2
    for order in ORDERS:
        values = [sid(real=c * x, generated=c * y, order=order, radii=FEW, queries=32).value for c in (1, 1e-70, 1e15)]
        assert values[1:] == pytest.approx(values[:1] * 2, rel=1e-9)


def test_a_point_in_the_middle_of_the_cube_gives_no_infinity() -> None:
    x = normal(50, 4, seed=1)
    y = torch.cat([x.mean(0, keepdim=True), x.mean(0, keepdim=True)])
    found = sid(real=x, generated=y, order=-5, radii=(1e-200,), queries=4)
    assert np.isfinite(found.value) and found.value < 0


def test_shares_of_pictures_add_up_to_the_value() -> None:
    found = sid(real=normal(50, 8, seed=1), generated=normal(40, 8, seed=2), order=-1, radii=FEW, queries=16)
    assert found.of_real.shape == (50,) and found.of_generated.shape == (40,)
    assert found.of_generated.mean() - found.of_real.mean() == pytest.approx(found.value, rel=1e-12)


def test_more_queries_leave_a_smaller_error_of_their_own() -> None:
    x, y = normal(200, 8, seed=1), normal(200, 8, seed=2) + 0.3
    few, many = (sid(real=x, generated=y, radii=FEW, queries=count) for count in (100, 1600))
    assert 2.5 < few.query_error / many.query_error < 6
    values = [sid(real=x, generated=y, radii=FEW, queries=100, seed=s).value for s in range(40)]
    assert 0.7 < np.std(values) / few.query_error < 1.4
    assert sid(real=x, generated=y, radii=FEW, queries=100).value == few.value


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"order": 2}, "use order=1"),
        ({"queries": 1}, "queries=2048"),
        ({"radii": ()}, "radii"),
        ({"radii": (0, 1)}, "radii"),
        ({"real": torch.ones(5, 3)}, "do not vary"),
        ({"real": normal(2, 3)}, "real has 2 rows"),
        ({"generated": normal(5, 4)}, "one extractor"),
    ],
)
def test_bad_input_is_refused_in_one_line(settings: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        sid(**{"real": normal(5, 3), "generated": normal(5, 3, seed=1), **settings})
    assert "\n" not in str(caught.value)
