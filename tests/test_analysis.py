"""What a denoiser knows, against closed forms: Gaussians and mixtures in float64 on three paths."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from exact import PATHS, START, Line, exact_u, level_of_lam, mixture, smooth_grid
from sklearn.mixture import GaussianMixture as Oracle
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.samplers import ExactDenoiser, NetworkDenoiser, SeededNoise, analysis, iterate, sample
from pilotage.samplers.analysis import gaussian_mixture
from pilotage.samplers.grids import make_grid
from pilotage.samplers.prediction import Prediction
from pilotage.samplers.schedule import Level, RectifiedFlow, VarianceExploding, stable_diffusion_schedule
from pilotage.zoo import toy

EVERY_PATH = pytest.mark.parametrize("path", PATHS)
EVERY_DERIVATIVE = pytest.mark.parametrize("derivative", ["forward", "finite"])
POINTS = torch.tensor([[0.7, -0.4], [-1.1, 0.2], [0.2, 0.9], [0.0, 0.0]], dtype=torch.float64)


def even_grid(path: str, first: float, last: float, steps: int) -> tuple[Level, ...]:
    return tuple(level_of_lam(path, float(lam)) for lam in np.linspace(first, last, steps + 1))


def posterior(world: toy.Mixture, x: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (B, K), means (B, K, d), covariances (K, d, d) of the mixture p(x_0 | x_t), by plain algebra."""
    a, s, eye = level.alpha, level.sigma, torch.eye(world.dimension, dtype=torch.float64)
    spread = a**2 * world.covariances + s**2 * eye
    gain = a * world.covariances @ torch.linalg.inv(spread)
    means = world.means + torch.einsum("kij,bkj->bki", gain, x[:, None] - a * world.means)
    covariances = world.covariances - a * gain @ world.covariances
    log = torch.stack(
        [torch.distributions.MultivariateNormal(a * m, c).log_prob(x) for m, c in zip(world.means, spread)], dim=1
    )
    return torch.softmax(log + world.weights.log(), dim=1), means, covariances


def covariance(world: toy.Mixture, x: Tensor, level: Level) -> Tensor:
    share, means, covariances = posterior(world, x, level)
    apart = means - torch.einsum("bk,bki->bi", share, means)[:, None]
    return torch.einsum("bk,kij->bij", share, covariances) + torch.einsum("bk,bki,bkj->bij", share, apart, apart)


def moments(world: toy.Mixture, x: Tensor, level: Level, v: Tensor) -> tuple[Tensor, ...]:
    """Mean and central moments two to four of v . x_0."""
    share, means, covariances = posterior(world, x, level)
    along, spread = means @ v, torch.einsum("i,kij,j->k", v, covariances, v)
    mean = (share * along).sum(1)
    a = along - mean[:, None]
    return (
        mean,
        (share * (a**2 + spread)).sum(1),
        (share * (a**3 + 3 * a * spread)).sum(1),
        (share * (a**4 + 6 * a**2 * spread + 3 * spread**2)).sum(1),
    )


def plane(d: int, k: int, seed: int = 0) -> tuple[toy.Gaussian, Tensor]:
    """A Gaussian on a k-dimensional plane of d-dimensional space, and its d x k basis."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64))[0]
    scales = torch.linspace(0.5, 2.0, k, dtype=torch.float64)
    return toy.Gaussian(torch.ones(d), basis * scales @ basis.T), basis


class Rotating:
    """A denoiser with a rotation added: no gradient field any more. For N(0, I) data its flow keeps every marginal."""

    def __init__(self, inner: ExactDenoiser, rate: float):
        self.inner, self.rate, self.schedule = inner, rate, inner.schedule

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        found = self.inner(x, level, condition)
        turned = torch.stack([-x[:, 1], x[:, 0]], dim=1)
        return replace(found, native=found.native + self.rate * level.sigma * turned)


# Posterior


@EVERY_PATH
def test_posterior_covariance_is_that_of_the_mixture(path: str) -> None:
    for lam in (-1.5, 0.0, 1.5):
        level = level_of_lam(path, lam)
        exact = covariance(toy.g3(), POINTS, level)
        assert (analysis.posterior_covariance(mixture(path), POINTS, level) - exact).abs().max() < 2e-11
        by_differences = analysis.posterior_covariance(mixture(path), POINTS, level, derivative="finite")
        assert (by_differences - exact).abs().max() < 1e-8


def ten() -> tuple[ExactDenoiser, Tensor]:
    """Three Gaussians in ten dimensions, and two points."""
    generator = torch.Generator().manual_seed(4)
    turn = torch.linalg.qr(torch.randn(3, 10, 10, generator=generator, dtype=torch.float64))[0]
    scales = torch.tensor([4.0, 2.5, 1.5, *[0.3] * 7], dtype=torch.float64)
    means = torch.randn(3, 10, generator=generator, dtype=torch.float64)
    world = toy.Mixture([0.5, 0.3, 0.2], means, turn * scales @ turn.transpose(1, 2))
    return ExactDenoiser(world, VarianceExploding()), torch.randn(2, 10, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("masked", [False, True])
def test_principal_components_are_the_eigenvectors(masked: bool) -> None:
    denoiser, x = ten()
    level = denoiser.schedule.level_of_rho(1.0)
    mask = torch.arange(10) < (6 if masked else 10)
    found = analysis.principal_components(
        denoiser, x, level, SeededNoise([1, 2]), mask=mask if masked else None, iterations=150
    )
    exact = covariance(denoiser.world, x, level)[:, mask][:, :, mask]
    values, vectors = torch.linalg.eigh(exact)
    values, vectors = values.flip(1)[:, :3], vectors.flip(2)[:, :, :3]
    assert torch.allclose(found.variances, values, rtol=1e-9)
    cosines = (found.directions[:, :, mask] * vectors.transpose(1, 2)).sum(2).abs()
    assert (1 - cosines).max() < 1e-9
    assert found.directions[:, :, ~mask].abs().sum() == 0
    assert found.residuals.max() < 1e-5
    assert torch.equal(found.mean, denoiser(x, level).denoised)
    apart = found.moved(1, -2.0) - found.mean
    assert torch.allclose(apart.norm(dim=1), 2 * values[:, 1].sqrt())


def test_principal_components_of_a_row_do_not_see_its_batch_mates() -> None:
    denoiser, x = ten()
    level = denoiser.schedule.level_of_rho(1.0)
    both = analysis.principal_components(denoiser, x, level, SeededNoise([1, 2]), iterations=3)
    alone = analysis.principal_components(denoiser, x[1:], level, SeededNoise([2]), iterations=3)
    assert torch.allclose(both.directions[1:], alone.directions, atol=1e-12)
    assert both.residuals.min() > 1e-4  # three rounds are too few, and the residuals say so


@EVERY_PATH
@EVERY_DERIVATIVE
def test_moments_along_a_direction(path: str, derivative: str) -> None:
    v = torch.tensor([0.6, 0.8], dtype=torch.float64)
    level = level_of_lam(path, 0.2)
    found = analysis.moments_along(mixture(path), POINTS, level, 3 * v.expand(4, 2), derivative=derivative)
    exact = moments(toy.g3(), POINTS, level, v)
    bounds = (1e-12, 1e-6, 1e-6, 3e-5) if derivative == "finite" else (1e-12, 1e-11, 1e-11, 1e-11)
    for name, wanted, bound in zip(("mean", "variance", "third", "fourth"), exact, bounds):
        scale = wanted.abs().clamp(min=1e-2)
        assert ((getattr(found, name) - wanted).abs() / scale).max() < bound, name


def test_a_network_with_attention_and_dropped_gradients_has_forward_derivatives() -> None:
    torch.manual_seed(0)
    query, value = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def network(x: Tensor, time: Tensor) -> Tensor:
        attended = torch.nn.functional.scaled_dot_product_attention(query(x)[:, None], x[:, None], value(x)[:, None])
        return torch.nn.functional.silu(attended[:, 0])

    denoiser = NetworkDenoiser(network, VarianceExploding(), "sample")
    level, x = Level(0.0, 1.0, 1.0), torch.randn(2, 3, 4)
    v = torch.randn(2, 3, 4)
    with torch.no_grad():
        exact = analysis.moments_along(denoiser, x, level, v)
    query.double(), value.double()
    other = analysis.moments_along(denoiser, x.double(), level, v.double(), derivative="finite")
    for name in ("mean", "variance", "third", "fourth"):
        assert torch.allclose(getattr(exact, name).double(), getattr(other, name), rtol=1e-3, atol=1e-5), name


def test_frozen_networks_and_other_memory_layouts_have_forward_derivatives() -> None:
    """Group norms in forward mode of forward mode want value and tangent in one layout; autoencoders give another."""
    torch.manual_seed(0)
    conv, last = torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.Conv2d(8, 4, 3, padding=1)
    network = torch.nn.Sequential(conv, torch.nn.GroupNorm(2, 8), torch.nn.SiLU(), last).requires_grad_(False)
    denoiser = NetworkDenoiser(lambda x, time: network(x), VarianceExploding(), "sample")
    level, x = Level(0.0, 1.0, 1.0), torch.randn(2, 4, 4, 4)
    other = x.to(memory_format=torch.channels_last)
    straight, turned = (
        analysis.principal_components(denoiser, z, level, SeededNoise([1, 2]), count=2, iterations=3)
        for z in (x, other)
    )
    assert torch.allclose(straight.variances, turned.variances, rtol=1e-4)
    found = [analysis.moments_along(denoiser, z, level, straight.directions[:, 0]).fourth for z in (x, other)]
    assert torch.allclose(found[0], found[1], rtol=1e-3)


# Maximum entropy


def test_maximum_entropy_of_a_gaussian_is_the_gaussian() -> None:
    one = torch.ones(1, dtype=torch.float64)
    found = analysis.maximum_entropy(analysis.Moments(2 * one, 4 * one, 0 * one, 48 * one), deviations=8.0)
    exact = torch.distributions.Normal(2.0, 2.0).log_prob(found.positions).exp()
    assert (found.density - exact).abs().max() < 1e-8


def test_maximum_entropy_has_the_moments_and_two_peaks_where_they_are() -> None:
    """Against two Gaussians 2.4 apart, whose peaks the four moments show, and a skewed pair."""
    share, means, spread = torch.tensor([[0.5, 0.5], [0.8, 0.2]]).double(), torch.tensor([-1.2, 1.2]).double(), 0.25
    mean = share @ means
    a = means - mean[:, None]
    exact = [
        (share * p).sum(1) for p in (a**2 + spread, a**3 + 3 * a * spread, a**4 + 6 * a**2 * spread + 3 * spread**2)
    ]
    found = analysis.maximum_entropy(analysis.Moments(mean, *exact))
    step = found.positions[:, 1] - found.positions[:, 0]
    c = found.positions - mean[:, None]
    for power, wanted in zip((0, 1, 2, 3, 4), (torch.ones(2), torch.zeros(2), *exact)):
        assert ((found.density * c**power).sum(1) * step - wanted).abs().max() < 1e-9
    peaks = (found.density[0, 1:-1] > found.density[0, :-2]) & (found.density[0, 1:-1] > found.density[0, 2:])
    assert peaks.sum() == 2
    fifth = np.diff(found.density.log().numpy()[:, 100:400], n=5)  # of a polynomial of degree four
    assert np.abs(fifth).max() < 1e-9


def test_maximum_entropy_refuses_moments_that_no_density_has() -> None:
    one = torch.ones(1)
    with pytest.raises(UsageError, match="no density"):
        analysis.maximum_entropy(analysis.Moments(one, one, one, 1.5 * one))


# Likelihood


@pytest.mark.parametrize(("path", "derivative"), [*((path, "forward") for path in PATHS), ("vp", "finite")])
def test_likelihood_is_that_of_the_mixture(path: str, derivative: str) -> None:
    denoiser, levels = mixture(path), even_grid(path, -1.0, 1.0, 80)
    x = levels[-1].alpha * POINTS
    found = analysis.log_likelihood(denoiser, x, grid=levels, prior=toy.g3().log_density, derivative=derivative)
    exact = toy.g3().log_density(x, levels[-1].alpha, levels[-1].sigma)
    assert (found.nats - exact).abs().max() < 1e-8
    bits = -exact / 2 / math.log(2)
    assert torch.allclose(found.bits(), bits, atol=1e-8)
    assert torch.allclose(found.bits(1 / 127.5), bits + math.log2(127.5), atol=1e-8)


@pytest.mark.parametrize(("method", "order"), [("heun", 2), ("rk4", 4)])
def test_likelihood_converges_with_the_order_of_its_quadrature(method: str, order: int) -> None:
    def error(steps: int) -> float:
        levels = smooth_grid("vp", steps)
        x = levels[-1].alpha * POINTS
        exact = toy.g3().log_density(x, levels[-1].alpha, levels[-1].sigma)
        found = analysis.log_likelihood(mixture("vp"), x, grid=levels, prior=toy.g3().log_density, method=method)
        return float((found.nats - exact).norm())

    assert order - 0.25 < math.log2(error(20) / error(40)) < order + 0.6


def test_likelihood_on_a_named_grid_with_the_ordinary_prior() -> None:
    """The whole schedule by name. What is left is that p_T is not quite its prior: they differ by just that."""
    denoiser = mixture("vp")
    last = make_grid("exponential", denoiser.schedule, 100)[-2]
    x = last.alpha * POINTS
    found = analysis.log_likelihood(denoiser, x, steps=100)
    first = denoiser.schedule.level(denoiser.schedule.T)
    gap = analysis.GaussianPrior()(found.latents, first.alpha, first.sigma)
    gap -= toy.g3().log_density(found.latents, first.alpha, first.sigma)
    apart = found.nats - toy.g3().log_density(x, last.alpha, last.sigma)
    assert (apart - gap).abs().max() < 1e-4 < apart.abs().max() < 1e-2


def test_likelihood_on_a_discrete_schedule() -> None:
    schedule = stable_diffusion_schedule()
    world = toy.Gaussian([0.7], [[0.3]])
    last = make_grid("exponential", schedule, 80)[-2]
    x = torch.linspace(-0.5, 2.0, 6, dtype=torch.float64)[:, None]
    found = analysis.log_likelihood(ExactDenoiser(world, schedule), x, steps=80, prior=world.log_density)
    assert (found.nats - world.log_density(x, last.alpha, last.sigma)).abs().max() < 1e-5


def test_hutchinsons_estimate_is_unbiased_and_its_spread_is_the_known_one() -> None:
    """Rademacher: the variance of v^T J v is 2 sum_{i != j} of the squared symmetric part."""
    denoiser, x = ten()
    level = denoiser.schedule.level_of_rho(1.0)
    x = x[:1].expand(4000, 10)
    jacobian = analysis.jacobian_of(denoiser, x, level)
    noise = SeededNoise(range(4000))
    (probe,) = (noise.draw("trace", 0, x).sign(),)
    estimates = jacobian.value_and_trace((probe,))[1]
    matrix = analysis.jacobian_of(denoiser, x[:1], level).matrix()[0]
    sym = (matrix + matrix.T) / 2
    spread = math.sqrt(2 * float((sym - sym.diag().diag()).square().sum()))
    assert abs(estimates.mean() - matrix.trace()) < 4 * spread / math.sqrt(4000)
    assert abs(estimates.std() / spread - 1) < 0.1
    assert abs(jacobian.value_and_trace()[1][0] - matrix.trace()) < 1e-12


def test_estimated_likelihood_is_exact_where_the_jacobian_is_diagonal_and_repeats_with_its_seed() -> None:
    world = toy.Gaussian([0.3, -0.2], [[0.5, 0.0], [0.0, 0.1]])
    denoiser = ExactDenoiser(world, PATHS["flow"])
    settings: dict[str, Any] = {"grid": smooth_grid("flow", 15), "probes": 1, "prior": world.log_density}
    found = analysis.log_likelihood(denoiser, POINTS, noise=SeededNoise([1, 2, 3, 4]), **settings).nats
    exact = analysis.log_likelihood(denoiser, POINTS, **{**settings, "probes": 0}).nats
    assert (found - exact).abs().max() < 1e-12

    tilted, settings["prior"] = mixture("flow"), toy.g3().log_density
    first = analysis.log_likelihood(tilted, POINTS, noise=SeededNoise([1, 2, 3, 4]), **settings).nats
    alone = analysis.log_likelihood(tilted, POINTS[2:3], noise=SeededNoise([3]), **settings).nats
    other = analysis.log_likelihood(tilted, POINTS, noise=SeededNoise([5, 6, 7, 8]), **settings).nats
    assert torch.allclose(first[2:3], alone, atol=1e-12)
    assert (first - other).abs().max() > 0.1


def test_likelihood_refuses_pure_noise_and_missing_seeds() -> None:
    with pytest.raises(UsageError, match="exponential"):
        analysis.log_likelihood(mixture("flow"), POINTS, grid="flow", steps=10)
    with pytest.raises(UsageError, match="noise=SeededNoise"):
        analysis.log_likelihood(mixture("vp"), POINTS, probes=1)
    with pytest.raises(UsageError, match="rk4"):
        analysis.log_likelihood(mixture("vp"), POINTS, method="rk45")


# Score field


def test_exact_worlds_are_conservative_and_a_rotation_is_not() -> None:
    denoiser, level = mixture("ve"), level_of_lam("ve", 0.3)
    noise = SeededNoise([1, 2, 3, 4])
    for probes in (0, 8):
        assert analysis.asymmetry(denoiser, POINTS, level, probes=probes, noise=noise).max() < 1e-14
    rotating = Rotating(denoiser, 0.7)
    matrix = analysis.jacobian_of(rotating, POINTS, level).matrix()
    exact = (matrix - matrix.transpose(1, 2)).flatten(1).norm(dim=1) / (2 * matrix.flatten(1).norm(dim=1))
    assert exact.min() > 0.1
    assert torch.allclose(analysis.asymmetry(rotating, POINTS, level, probes=0), exact, atol=1e-12)
    estimated = analysis.asymmetry(rotating, POINTS, level, probes=200, noise=noise)
    assert ((estimated - exact).abs() / exact).max() < 0.1


def test_a_gauge_field_breaks_conservativity_but_not_the_likelihood() -> None:
    """x turned by a right angle is free of divergence and orthogonal to the score of N(0, s), so div(p r) = 0."""
    world = toy.Gaussian([0.0, 0.0], [[0.6, 0.0], [0.0, 0.6]])
    rotating = Rotating(ExactDenoiser(world, PATHS["vp"]), 0.7)
    levels = even_grid("vp", -1.5, 1.5, 40)
    assert analysis.asymmetry(rotating, POINTS, levels[20], probes=0).min() > 0.2
    found = analysis.log_likelihood(rotating, POINTS, grid=levels, prior=world.log_density)
    assert (found.nats - world.log_density(POINTS, levels[-1].alpha, levels[-1].sigma)).abs().max() < 5e-6
    straight = analysis.log_likelihood(rotating.inner, POINTS, grid=levels, prior=world.log_density)
    assert (found.latents - straight.latents)[:3].norm(dim=1).min() > 0.1  # by other ways, to the same density


@pytest.mark.parametrize("k", [1, 3, 7])
def test_dimension_of_a_gaussian_on_a_plane(k: int) -> None:
    world, basis = plane(9, k)
    denoiser = ExactDenoiser(world, PATHS["vp"])
    level = denoiser.schedule.level_of_rho(0.01)
    clean = world.mean() + torch.randn(3, k, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) @ basis.T
    found = analysis.local_dimension(denoiser, level.alpha * clean, level)
    assert found.half.tolist() == found.gap.tolist() == [k] * 3
    assert (found.trace - k).abs().max() < 1e-2
    spectrum = analysis.score_spectrum(denoiser, clean, level, SeededNoise([1, 2, 3]), copies=200)
    assert analysis.normal_dimension(spectrum).tolist() == [k] * 3


def test_spectrum_of_the_flow_is_that_of_the_gaussian() -> None:
    """d x / d x_T has singular values sqrt((alpha^2 l + sigma^2) / (alpha_T^2 l + sigma_T^2)) for variances l."""
    world, _ = plane(4, 2)
    denoiser = ExactDenoiser(world, PATHS["vp"])
    levels = smooth_grid("vp", 50)
    spectra = analysis.flow_spectrum(denoiser, POINTS.repeat(1, 2), levels)
    variances = world.variances[0].clamp(min=0)
    for level, found in zip(levels, spectra):
        exact = ((variances + level.rho**2) / (variances + levels[0].rho ** 2)).sqrt().flip(0)
        assert (found - exact).abs().max() < 2e-6
    assert analysis.intrinsic_dimension(spectra[-1]).tolist() == [2] * 4


# Score norms


def test_score_norms_are_taken_at_the_clean_picture_and_do_not_depend_on_the_schedule() -> None:
    found = {}
    for path, schedule in PATHS.items():
        levels = analysis.geometric_levels(schedule, 0.05, 0.5, 5)
        found[path] = analysis.score_norm_features(mixture(path), POINTS, levels)
        assert [l.rho for l in levels] == pytest.approx(np.geomspace(0.05, 0.5, 5))
        for k, l in enumerate(levels):
            exact = (l.sigma * toy.g3().score(l.alpha * POINTS, l.alpha, l.sigma)).norm(dim=1)
            assert torch.allclose(found[path][:, k], exact, atol=1e-9)
    assert torch.allclose(found["vp"], found["ve"], atol=1e-9)
    assert torch.allclose(found["flow"], found["ve"], atol=1e-9)


def test_em_arrives_where_scikit_learn_does() -> None:
    points = toy.g3().sample(500, torch.Generator().manual_seed(3))
    start = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    oracle = Oracle(
        3, means_init=start.numpy(), weights_init=np.full(3, 1 / 3), precisions_init=np.tile(np.eye(2), (3, 1, 1)),
        reg_covar=1e-6, tol=1e-12, max_iter=2000,
    ).fit(points.numpy())  # fmt: skip
    eye = torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    first = gaussian_mixture.GaussianMixture(torch.full((3,), 1 / 3, dtype=torch.float64), start, eye)
    ours = gaussian_mixture.polish(first, points, 2000, 1e-12, 1e-6)
    probe = toy.g3().sample(50, torch.Generator().manual_seed(4))
    assert (ours.log_density(probe) - torch.from_numpy(oracle.score_samples(probe.numpy()))).abs().max() < 1e-4
    own = analysis.fit_mixture(points, 3, seed=0)
    assert own.log_density(points).mean() > oracle.score(points.numpy()) - 1e-3
    assert torch.allclose(own.weights.sort().values, torch.tensor([0.25, 0.35, 0.4]).double(), atol=0.06)


def test_components_are_chosen_on_held_out_points() -> None:
    world = toy.Mixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 0.0]], np.tile(0.05 * np.eye(2), (2, 1, 1)))
    points = world.sample(120, torch.Generator().manual_seed(0))
    assert analysis.choose_components(points, (1, 2, 8), folds=4) == 2


@pytest.mark.parametrize("detector", [analysis.MixtureDetector, analysis.NeighbourDetector])
def test_strangers_are_told_apart_by_score_norms(detector: Any) -> None:
    """Data on a plane in nine dimensions; strangers are a little off it."""
    world, _ = plane(9, 3)
    denoiser = ExactDenoiser(world, PATHS["ve"])
    levels = analysis.geometric_levels(denoiser.schedule, 0.03, 1.0)
    generator = torch.Generator().manual_seed(7)
    train, test, held = (world.sample(n, generator) for n in (400, 200, 200))
    near = test + 0.05 * torch.randn(200, 9, generator=generator, dtype=torch.float64)
    fitted = detector.fit(analysis.score_norm_features(denoiser, train, levels))
    known, same, strange = (fitted.score(analysis.score_norm_features(denoiser, x, levels)) for x in (test, held, near))
    auroc = (strange[:, None] > known).double().mean()
    assert auroc > 0.99
    assert abs((same[:, None] > known).double().mean() - 0.5) < 0.08


def test_neighbours_are_counted_with_ties_in_standardised_features() -> None:
    features = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 1.0], [10.0, 1.0]])
    found = analysis.NeighbourDetector.fit(features, k=1).score(torch.tensor([[0.0, 0.0], [10.0, 0.5]]))
    deviation = float(features[:, 1].double().std())
    assert found.tolist() == pytest.approx([0.0, 0.5 / deviation])
    with pytest.raises(UsageError, match=r"1 \.\. 4"):
        analysis.NeighbourDetector.fit(features, k=5)


# Local error


@pytest.mark.parametrize("corrector", ["heun", "unic"])
def test_local_error_falls_with_the_fourth_power_and_is_the_same_in_every_schedule(corrector: str) -> None:
    found = {}
    for path in PATHS:
        level = level_of_lam(path, 0.0)
        x = level.alpha * exact_u(START["ve"], 0.0).expand(1, 2)
        found[path] = [
            float(analysis.step_error(mixture(path), x, level, level_of_lam(path, h), corrector=corrector))
            for h in (0.1, 0.05, 0.025)
        ]
    assert found["vp"] == pytest.approx(found["ve"], rel=1e-9)
    assert found["flow"] == pytest.approx(found["ve"], rel=1e-9)
    for coarse, fine in pairwise(found["ve"]):
        assert 3.7 < math.log2(coarse / fine) < 4.3


def test_local_error_estimates_the_error_of_the_euler_step() -> None:
    """The estimate is the true error of the step up to one more power of h."""
    level, goal = level_of_lam("vp", 0.0), level_of_lam("vp", 0.02)
    start = exact_u(START["ve"], 0.0)
    denoiser = mixture("vp")
    made = sample(denoiser, level.alpha * start[None], sampler="euler", grid=(level, goal))[0]
    true = float((made - goal.alpha * exact_u(START["ve"], 0.02)).square().mean())
    found = float(analysis.step_error(denoiser, level.alpha * start[None], level, goal))
    assert found == pytest.approx(true, rel=0.05)


class Bent:
    """A learnable denoiser whose local error has a minimum: the exact line plus a bend of weight w."""

    def __init__(self) -> None:
        self.schedule, self.w, self.line = PATHS["vp"], torch.tensor(0.5, requires_grad=True), Line()

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        exact = ExactDenoiser(self.line, self.schedule)(x, level)
        return exact.with_denoised(exact.denoised + self.w * torch.sin(3 * x))


def test_the_local_error_loss_is_differentiable_and_seeded() -> None:
    denoiser, noise = Bent(), SeededNoise(range(16))
    clean, unit = noise.draw("clean", 0, torch.zeros(16, 1)), noise.draw("noise", 0, torch.zeros(16, 1))
    leg = analysis.random_leg(denoiser.schedule, seed=3, step=0, length=0.4)
    assert leg == analysis.random_leg(denoiser.schedule, seed=3, step=0, length=0.4)
    assert leg != analysis.random_leg(denoiser.schedule, seed=3, step=1, length=0.4)
    assert leg[1].lam - leg[0].lam == pytest.approx(0.4)
    lams = [analysis.random_leg(denoiser.schedule, 3, k, length=0.4)[0].lam for k in range(200)]
    assert min(lams) < -2.8 and max(lams) > 2.4 and min(lams) >= -3 and max(lams) <= 2.6

    analysis.local_error_loss(denoiser, clean, unit, leg).backward()
    assert denoiser.w.grad is not None
    slope, step, at = denoiser.w.grad.item(), 1e-3, denoiser.w.detach().clone()
    losses = []
    for side in (step, -step):
        denoiser.w = at + side
        losses.append(float(analysis.local_error_loss(denoiser, clean.double(), unit.double(), leg)))
    assert slope == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-3)
    assert slope > 0  # less bend, less error


def test_equidistributed_levels_level_the_errors() -> None:
    denoiser = mixture("ve")
    x = torch.tensor([START["ve"]], dtype=torch.float64)
    pilot = tuple(level_of_lam("ve", l) for l in np.linspace(-2.5, 2.5, 201))
    placed = analysis.equidistributed(denoiser, x, pilot, 40)
    assert len(placed) == 41 and placed[0] == pilot[0] and placed[-1] == pilot[-1]
    assert all(b.lam > a.lam for a, b in pairwise(placed))

    def spread(levels: tuple[Level, ...]) -> float:
        """Largest over median local error (not squared) along a run."""
        errors, at = [], x
        steps = iterate(denoiser, x, sampler="heun", grid=levels)
        for level, goal, step in zip(levels, levels[1:], steps):
            errors.append(float(analysis.step_error(denoiser, at, level, goal)) ** 0.5)
            at = step.x
        return max(errors) / float(np.median(errors))

    uniform = pilot[::5]
    assert spread(placed) < 1.5 < 3 < spread(uniform)
    with_clean = analysis.equidistributed(denoiser, x, (*pilot, Level(0.0, 1.0, 0.0)), 40)
    assert len(with_clean) == 41 and with_clean[-1].sigma == 0


# End time and path scores


@EVERY_PATH
def test_end_time_gradient_is_the_derivative_of_the_loss(path: str) -> None:
    """L = |x - y|^2 / 2 at the end of the flow; the exact flow of u on both sides of the end."""
    schedule, y = PATHS[path], torch.tensor([0.3, 0.8], dtype=torch.float64)
    t = float(schedule.t_of_lam(0.5))
    ends = torch.tensor([t - 1e-4, t, t + 1e-4], dtype=torch.float64)
    levels = schedule.levels(ends)
    start, losses = START["ve"], []
    for level in levels:
        x = level.alpha * exact_u(start, level.lam)
        losses.append(float((x - y).square().sum() / 2))
    x = levels[1].alpha * exact_u(start, levels[1].lam)
    found = analysis.end_time_gradient(mixture(path), x[None], levels[1], (x - y)[None])
    assert float(found) == pytest.approx((losses[2] - losses[0]) / 2e-4, rel=1e-6)


@EVERY_PATH
def test_end_time_gradient_of_the_likelihood(path: str) -> None:
    """Against differences of the likelihood itself, and zero where the prior is the marginal of the world."""
    schedule, denoiser = PATHS[path], mixture(path)
    t = float(schedule.t_of_lam(-2.0))
    h, nats, slopes = 1e-4 * t, [], []
    for end in (schedule.level(t - h), schedule.level(t + h)):
        lams = np.linspace(end.lam, -0.5, 30)
        found = analysis.log_likelihood(denoiser, POINTS, grid=(end, *schedule.levels_of_rho(np.exp(-lams[1:]))))
        nats.append(found.nats)
        slopes.append(analysis.likelihood_end_time_gradient(denoiser, found.latents, end))
    slope = (slopes[0] + slopes[1]) / 2
    # Both solves err by the quadrature, which falls with the fourth power of their steps.
    assert torch.allclose(slope, (nats[0] - nats[1]) / (2 * h), rtol=1e-5, atol=1e-5)
    assert slope.abs().max() > 5e-3
    exact = analysis.likelihood_end_time_gradient(denoiser, found.latents, end, prior=toy.g3().log_density)
    assert exact.abs().max() < 1e-10


def test_the_velocity_is_finite_at_pure_noise() -> None:
    schedule = RectifiedFlow()
    network = NetworkDenoiser(lambda x, time: x * 0.5, schedule, "flow_prediction")
    x = torch.ones(2, 3)
    assert torch.allclose(analysis.velocity(network, x, schedule.level(1.0)), 0.5 * x)  # the velocity itself


def test_a_score_rides_along_the_flow() -> None:
    denoiser, levels = mixture("flow"), even_grid("flow", 1.0, -1.0, 40)
    first, last = levels[0], levels[-1]
    x = first.alpha * POINTS
    start = toy.g3().score(x, first.alpha, first.sigma)
    end, score = analysis.score_along_flow(denoiser, x, start, levels)
    exact = toy.g3().score(end, last.alpha, last.sigma)
    assert ((score - exact).norm(dim=1) / exact.norm(dim=1)).max() < 1e-6
    wrong = analysis.score_along_flow(denoiser, x, 1.1 * start, levels)[1]
    assert ((wrong - exact).norm(dim=1) / exact.norm(dim=1)).min() > 1e-3


def test_the_gradient_of_the_likelihood_is_the_score() -> None:
    """The marginal entropy term and the flow together, through autograd."""
    denoiser, levels = mixture("vp"), even_grid("vp", -0.5, 1.0, 30)
    x = POINTS.clone().requires_grad_(True)
    found = analysis.log_likelihood(denoiser, x, grid=levels, prior=toy.g3().log_density).nats
    (slope,) = torch.autograd.grad(found.sum(), x)
    exact = toy.g3().score(POINTS, levels[-1].alpha, levels[-1].sigma)
    assert torch.allclose(slope, exact, atol=1e-6)
