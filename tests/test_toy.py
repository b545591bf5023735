"""The exact worlds are exact: denoiser, density and classifier agree with each other to float64."""

from __future__ import annotations

import pytest
import torch

from pilotage.errors import UsageError
from pilotage.zoo import toy

LEVELS = [(0.99, 0.14), (0.7, 0.71), (0.1, 0.99), (1.0, 3.0)]
WORLDS = {
    "gaussian": lambda: toy.Gaussian([0.3, -1.0, 0.2], [[1.0, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 0.2]]),
    "g3": toy.g3,
    "tree": lambda: toy.fractal_tree(levels=4),
}


@pytest.fixture(params=WORLDS, name="world")
def _world(request: pytest.FixtureRequest) -> toy.Mixture:
    return WORLDS[request.param]()


def _points(world: toy.Mixture, alpha: float, sigma: float, count: int = 16) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    clean = world.sample(count, g)
    return alpha * clean + sigma * torch.randn(clean.shape, generator=g, dtype=torch.float64)


def _gradient(value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value.sum(), x)[0]


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
@pytest.mark.parametrize("conditional", [False, True])
def test_posterior_mean_is_tweedie_of_the_density(world, alpha, sigma, conditional):
    x = _points(world, alpha, sigma).requires_grad_()
    condition = torch.arange(len(x)) % (world.classes + 1) - 1 if conditional else None
    score = _gradient(world.log_density(x, alpha, sigma, condition), x)
    expected = (x + sigma**2 * score) / alpha
    assert torch.allclose(world.denoised(x, alpha, sigma, condition), expected, rtol=1e-9, atol=1e-9)
    assert torch.allclose(world.score(x, alpha, sigma, condition), score, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_classifier_is_bayes(world, alpha, sigma):
    x = _points(world, alpha, sigma)
    probability = world.class_probability(x, alpha, sigma)
    assert torch.allclose(probability.sum(1), torch.ones(len(x), dtype=torch.float64), atol=1e-12)
    for c in range(world.classes):
        joint = world.log_density(x, alpha, sigma, torch.full((len(x),), c)) + world.prior()[c].log()
        bayes = joint - world.log_density(x, alpha, sigma)
        assert torch.allclose(probability[:, c].log(), bayes, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_guidance_direction_is_the_classifier_gradient(alpha, sigma):
    # eps_c - eps_n = -sigma grad log p(c | x)
    world = toy.g3()
    x = _points(world, alpha, sigma).requires_grad_()
    c = torch.arange(len(x)) % 3
    eps_c, eps_n = ((x - alpha * world.denoised(x, alpha, sigma, k)) / sigma for k in (c, None))
    log_p = world.class_probability(x, alpha, sigma).gather(1, c[:, None]).log()
    assert torch.allclose(eps_c - eps_n, -sigma * _gradient(log_p, x), rtol=1e-8, atol=1e-9)


def test_rows_may_have_their_own_level_and_minus_one_is_unconditional():
    world = toy.g3()
    x = _points(world, 0.7, 0.7, 3)
    alpha, sigma = torch.tensor([0.9, 0.5, 0.7]).double(), torch.tensor([0.4, 0.8, 0.7]).double()
    condition = torch.tensor([-1, 2, 0])
    together = world.denoised(x, alpha, sigma, condition)
    for i in range(3):
        alone = world.denoised(x[i : i + 1], float(alpha[i]), float(sigma[i]), condition[i : i + 1])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-12)
    free = world.denoised(x[:1], alpha[:1], sigma[:1])
    assert torch.allclose(together[:1], free, atol=1e-12)


def test_gaussian_denoiser_is_the_textbook_formula():
    world = WORLDS["gaussian"]()
    alpha, sigma = 0.6, 0.8
    x = _points(world, alpha, sigma)
    m, c = world.means[0], world.covariances[0]
    gain = alpha * c @ torch.linalg.inv(alpha**2 * c + sigma**2 * torch.eye(3, dtype=torch.float64))
    assert torch.allclose(world.denoised(x, alpha, sigma), m + (x - alpha * m) @ gain.T, atol=1e-12)


def test_noise_free_limit_returns_the_data():
    world = toy.g3()
    x = _points(world, 1.0, 0.0)
    assert torch.allclose(world.denoised(x, 1.0, 0.0), x, atol=1e-12)


def test_fractal_tree_has_two_normalised_classes():
    world = toy.fractal_tree()
    assert len(world.weights) == 2 * 8 * 127
    assert world.classes == 2
    assert torch.allclose(world.mean(), torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(world.covariance().diagonal().sqrt(), torch.full((2,), 0.5, dtype=torch.float64))
    drawn = world.sample(400, torch.Generator().manual_seed(1), condition=1)
    assert float((world.class_probability(drawn, 1.0, 0.002)[:, 1] > 0.5).double().mean()) > 0.95
    assert torch.equal(toy.fractal_tree().means, world.means)


def test_samples_have_the_stated_moments():
    world = toy.g3()
    drawn = world.sample(200_000, torch.Generator().manual_seed(3))
    assert torch.allclose(drawn.mean(0), world.mean(), atol=0.01)
    assert torch.allclose(torch.cov(drawn.T), world.covariance(), atol=0.02)


def test_a_class_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match="3 classes"):
        toy.g3().denoised(torch.zeros(1, 2), 0.7, 0.7, torch.tensor([3]))
