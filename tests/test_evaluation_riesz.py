"""Energy distances: all pairs and slices against double sums, closed forms and scipy; the loss against its gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.evaluation.metrics.riesz import energy_distance
from pilotage.evaluation.metrics.sliced_energy import directions, row_sums, slice_constant, sliced_energy_distance
from pilotage.evaluation.metrics.sliced_loss import (
    energy_1d,
    energy_1d_gradient,
    sliced_energy_gradient,
    sliced_energy_loss,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def whole(*shape: int, seed: int = 0) -> Tensor:
    """Numbers with many ties."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 4, shape)).double()


def loop(x: Tensor, y: Tensor, r: float, unbiased: bool) -> float:
    """The definition, by a double loop over rows."""

    def mean(a: Tensor, b: Tensor, pairs: int) -> float:
        return sum(float((p - q).norm()) ** r for p in a for q in b) / pairs

    n, m, less = len(x), len(y), int(unbiased)
    return 2 * mean(x, y, n * m) - mean(x, x, n * (n - less)) - mean(y, y, m * (m - less))


@pytest.mark.parametrize("r", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("unbiased", [True, False])
def test_equals_the_double_loop_in_any_block(r: float, unbiased: bool) -> None:
    x, y = normal(23, 5) + 1e3, normal(17, 5, seed=1) * 1.5 + 1e3
    y[3:6] = x[2]  # copies, between the sets and within
    expected = loop(x, y, r, unbiased)
    for block in (4, 1024):
        found = energy_distance(real=x, generated=y, r=r, unbiased=unbiased, block=block)
        assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.null == (0 if unbiased else pytest.approx(found.within_real * (1 / 23 + 1 / 17)))


def test_one_dimension_equals_scipy() -> None:
    x, y = normal(40), normal(31, seed=1) + 0.5
    expected = stats.energy_distance(x.numpy(), y.numpy()) ** 2
    assert energy_distance(real=x[:, None], generated=y[:, None], unbiased=False).value == pytest.approx(expected)
    assert float(energy_1d(x[None], y[None])[0]) == pytest.approx(expected, rel=1e-12)
    sliced = sliced_energy_distance(real=x[:, None], generated=y[:, None], unbiased=False, slices=32)
    assert sliced.value == pytest.approx(expected, rel=1e-10)
    assert sliced.slice_error == pytest.approx(0, abs=1e-12)  # in one dimension every direction says the same


def test_gaussians_have_a_closed_form() -> None:
    """E|N(m, s^2)| = s sqrt(2/pi) exp(-m^2/2s^2) + m erf(m/(s sqrt 2))."""
    m, x, y = 0.7, normal(3000), normal(3000, seed=1) * 0.6 + 0.7
    s = math.hypot(1, 0.6)
    across = s * math.sqrt(2 / math.pi) * math.exp(-(m**2) / (2 * s**2)) + m * math.erf(m / (s * math.sqrt(2)))
    exact = 2 * across - 2 / math.sqrt(math.pi) - 0.6 * 2 / math.sqrt(math.pi)
    found = sliced_energy_distance(real=x[:, None], generated=y[:, None], slices=2)
    assert found.standard_error < exact / 10
    assert abs(found.value - exact) < 3 * found.standard_error


@pytest.mark.parametrize("dimension", [2, 3, 64, 4096])
@pytest.mark.parametrize("r", [0.5, 1.0, 1.5])
def test_slice_constant(dimension: int, r: float) -> None:
    """|u_1|^r, where u_1^2 is Beta(1/2, (d - 1)/2)."""
    beta = stats.beta(0.5, (dimension - 1) / 2)
    assert slice_constant(dimension, r) == pytest.approx(beta.expect(lambda t: t ** (r / 2), limit=500), rel=1e-4)
    assert slice_constant(1, r) == pytest.approx(1)


def test_directions() -> None:
    u = directions(6, 15, torch.Generator().manual_seed(0))
    assert torch.allclose(u[:6] @ u[:6].T, torch.eye(6).double()) and torch.allclose(u.norm(dim=1), u.new_ones(15))
    assert torch.allclose(u[12:] @ u[12:].T, torch.eye(3).double())
    loose = directions(6, 4000, torch.Generator().manual_seed(0), orthogonal=False)
    assert torch.allclose(loose.norm(dim=1), loose.new_ones(4000))
    assert float(loose[:, 0].abs().mean()) == pytest.approx(slice_constant(6), abs=0.015)


@pytest.mark.parametrize("draw", [normal, whole])
def test_row_sums(draw) -> None:
    x, y = draw(3, 13), draw(3, 8, seed=1)
    z = torch.cat([x, y], 1)
    expected = torch.stack([(z[:, :, None] - other[:, None]).abs().sum(2) for other in (x, y)])
    assert torch.allclose(row_sums(x, y), expected, atol=1e-12)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_slices_are_unbiased_and_know_their_error(orthogonal: bool) -> None:
    x, y = normal(60, 8), normal(50, 8, seed=1) + 0.3
    full = energy_distance(real=x, generated=y).value
    found = [sliced_energy_distance(real=x, generated=y, slices=96, orthogonal=orthogonal, seed=s) for s in range(100)]
    values = np.asarray([f.value for f in found])
    assert abs(values.mean() - full) < 3.5 * values.std() / 10
    assert values.std() == pytest.approx(np.mean([f.slice_error for f in found]), rel=0.25)


def test_directions_at_right_angles_help() -> None:
    x, y = normal(60, 8), normal(50, 8, seed=1) + 0.3
    errors = [sliced_energy_distance(real=x, generated=y, slices=512, orthogonal=o).slice_error for o in (True, False)]
    assert errors[0] < errors[1] / 3


def test_unbiased_on_equal_distributions_and_the_jackknife() -> None:
    def draws(shift: float, scale: float) -> tuple[np.ndarray, float]:
        rng = np.random.default_rng(0)
        found = [
            energy_distance(real=rng.standard_normal((60, 3)), generated=rng.standard_normal((80, 3)) * scale + shift)
            for _ in range(250)
        ]
        return np.asarray([f.value for f in found]), float(np.mean([f.standard_error for f in found]))

    null, error = draws(0, 1)
    assert abs(null.mean()) < 3 * null.std() / math.sqrt(len(null))
    assert 1.1 < error / null.std() < 1.7  # too large by about sqrt(2), as promised
    apart, error = draws(0.8, 1.2)
    assert error == pytest.approx(apart.std(), rel=0.15)


def test_sees_what_moments_do_not() -> None:
    """Equal means and covariances, another shape."""
    x, y = normal(800, 2), torch.sign(normal(800, 2, seed=1))
    found = energy_distance(real=x, generated=y)
    assert found.value > 5 * found.standard_error


@pytest.mark.parametrize("unbiased", [True, False])
def test_sorted_energy_equals_the_double_sum(unbiased: bool) -> None:
    for draw in (normal, whole):
        x, y = draw(3, 12), draw(3, 7, seed=1)
        expected = [loop(a[:, None], b[:, None], 1, unbiased) for a, b in zip(x, y, strict=True)]
        assert np.allclose(energy_1d(x, y, unbiased=unbiased), expected, atol=1e-13)


def double_sum(x: Tensor, y: Tensor) -> Tensor:
    def mean(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, :, None] - b[:, None]).abs().mean((1, 2))

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


@pytest.mark.parametrize("draw", [normal, whole])
def test_gradient_from_ranks_equals_that_of_the_double_sum(draw) -> None:
    """With ties as well: |x| has gradient 0 at 0 in autograd, which is half a step of F."""
    x, y = draw(4, 11).requires_grad_(), draw(4, 6, seed=1)
    (expected,) = torch.autograd.grad(double_sum(x, y).sum(), x)
    assert torch.allclose(energy_1d_gradient(x.detach(), y), expected, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient_of_the_loss_equals_autograd_through_the_sort(dtype: torch.dtype) -> None:
    x, y = normal(30, 5).to(dtype).requires_grad_(), (normal(20, 5, seed=1) + 0.4).to(dtype)
    loss = sliced_energy_loss(x, y, 64, torch.Generator().manual_seed(3))
    (through,) = torch.autograd.grad(loss, x)
    closed = sliced_energy_gradient(x, y, 64, torch.Generator().manual_seed(3))
    assert closed.dtype == dtype and not closed.requires_grad
    assert torch.allclose(closed, through, atol=1e-15 if dtype == torch.float64 else 1e-6)


def test_loss_equals_the_metric_and_its_gradient_tends_to_that_of_the_space() -> None:
    x, y = normal(40, 3).requires_grad_(), normal(30, 3, seed=1) + 0.4
    loss = sliced_energy_loss(x, y, 3000, torch.Generator().manual_seed(0), unbiased=True)
    found = energy_distance(real=x, generated=y)
    assert float(loss.detach()) == pytest.approx(found.value, rel=0.02)
    apart = 2 * torch.cdist(x, y).mean() - (x[:, None] - x + 1e-12).norm(dim=2).mean()
    (exact,) = torch.autograd.grad(apart, x)
    close = sliced_energy_gradient(x, y, 3000)
    assert float((close - exact).norm() / exact.norm()) < 0.05


def test_seeds_and_global_state() -> None:
    x, y = normal(20, 4), normal(20, 4, seed=1)
    before = torch.get_rng_state()
    one, same, other = (sliced_energy_distance(real=x, generated=y, slices=32, seed=s) for s in (0, 0, 1))
    assert one == same and one.value != other.value
    assert float(sliced_energy_loss(x, y, 8)) == float(sliced_energy_loss(x, y, 8))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "fix"),
    [
        (lambda x: energy_distance(real=x, generated=x, r=2), "r=1"),
        (lambda x: sliced_energy_distance(real=x, generated=x, r=0.5), "energy_distance"),
        (lambda x: sliced_energy_distance(real=x, generated=x, slices=1), "1024"),
        (lambda x: energy_distance(real=x, generated=x[:, :2]), "extractor"),
        (lambda x: energy_distance(real=x, generated=x[:1]), "more pictures"),
        (lambda x: sliced_energy_loss(x, x[:, :2]), "flatten"),
        (lambda x: sliced_energy_loss(x, x, 0), "256"),
    ],
)
def test_refuses_in_one_line(call, fix: str) -> None:
    with pytest.raises(UsageError, match=fix) as caught:
        call(normal(5, 3))
    assert "\n" not in str(caught.value)
