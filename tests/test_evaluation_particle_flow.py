"""Particle flows: the force against a double sum, convergence on toys, windows, and a chain that learns to follow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.evaluation.generative_flow import GeneratorSettings, Stage, StageReport, fit_generative_flow
from pilotage.evaluation.metrics.riesz import energy_distance
from pilotage.evaluation.particle_flow import FlowSettings, _window, force, particle_flow


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def two_moons(count: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    angle, which = rng.uniform(0, np.pi, count), rng.integers(0, 2, count)
    points = np.stack([np.cos(angle) + which, np.sin(angle) * (1 - 2 * which) + 0.5 * which], axis=1)
    return torch.from_numpy(points + 0.05 * rng.standard_normal((count, 2))).float()


def test_force_is_unit_vectors_towards_the_data_and_away_from_the_others() -> None:
    x, y = normal(20, 3).double(), normal(15, 3, seed=1).double() + 0.5

    def units(z: Tensor) -> Tensor:
        return z / z.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    expected = units(y - x[:, None]).mean(1) - units(x - x[:, None]).mean(1)
    found = force(x, y, 6000, torch.Generator().manual_seed(0))
    assert float((found - expected).norm() / expected.norm()) < 0.03
    assert float(expected.norm(dim=1).max()) <= 2


def test_particles_become_a_sample() -> None:
    data, start = two_moons(400, 0), normal(150, 2)
    flow = particle_flow(start, data, FlowSettings(steps=300), keep=(0, 50))
    assert list(flow.kept) == [0, 50, 300] and torch.equal(flow.kept[0], start)
    assert torch.equal(flow.particles, flow.kept[300])
    assert flow.energies[0] > flow.energies[50] > flow.energies[300]
    fresh = [energy_distance(real=data, generated=two_moons(150, seed)).value for seed in range(1, 20)]
    assert flow.energies[300] < np.median(fresh)  # they keep apart, so they are more even than a sample
    near = torch.cdist(flow.particles, data).amin(1)
    assert float(near.median()) < 0.1 and float((near < 0.3).float().mean()) > 0.9


def test_momentum_is_heavy_ball_and_the_step_falls() -> None:
    start, data = normal(8, 2), normal(9, 2, seed=1) * 3
    unit = float((data - data.mean(0)).square().sum(1).mean().sqrt())
    settings = FlowSettings(steps=2, step_size=0.1, last_step_size=0.02, momentum=0.5, slices=4, seed=3)
    generator = torch.Generator().manual_seed(3)
    v = force(start, data, 4, generator)
    x = start + 0.1 * unit * v
    v = 0.5 * v + force(x, data, 4, generator)
    x = x + 0.06 * unit * v
    assert torch.allclose(particle_flow(start, data, settings).particles, x, atol=1e-6)


def test_units_do_not_matter_and_seeds_do() -> None:
    start, data = normal(30, 4), normal(30, 4, seed=1) + 1
    settings = FlowSettings(steps=20)
    before = torch.get_rng_state()
    one = particle_flow(start, data, settings).particles
    assert torch.equal(one, particle_flow(start, data, settings).particles)
    assert torch.allclose(particle_flow(start * 100, data * 100, settings).particles, one * 100, rtol=1e-3, atol=1e-2)
    assert not torch.equal(one, particle_flow(start, data, FlowSettings(steps=20, seed=1)).particles)
    assert torch.equal(before, torch.get_rng_state())


def test_windows_cover_all_places_alike() -> None:
    generator, hits = torch.Generator().manual_seed(0), torch.zeros(2 * 5 * 5)
    for _ in range(4000):
        inside = _window(3, (2, 5, 5), generator)
        assert 2 <= len(inside) <= 18
        hits[inside] += 1
    assert torch.allclose(hits / 4000, torch.full((50,), 9 / 49), atol=0.03)


def test_windows_see_what_whole_pictures_hide() -> None:
    """Checkerboards of independent cells: directions through all 64 pixels hardly see that pixels are two-valued."""
    data = torch.sign(normal(300, 64))
    start = normal(60, 64, seed=1)
    spread = {}
    for windows in ((), (2, 1)):
        settings = FlowSettings(steps=300, slices=16, windows=windows, shape=(1, 8, 8))
        spread[windows] = float((particle_flow(start, data, settings).particles.abs() - 1).abs().mean())
    assert spread[(2, 1)] < spread[()] - 0.05


def test_a_chain_follows_the_flow_and_makes_new_samples() -> None:
    """Pictures of one random grey: noise in, flat pictures out."""
    data = (normal(400, 1, 1, 1) * 0.8 + 2).expand(-1, 1, 4, 4).contiguous()
    settings = GeneratorSettings(
        particles=200, stages=2, flow=FlowSettings(steps=100), width=12, fit_steps=120, batch=50, learning_rate=5e-3
    )
    reports: list[StageReport] = []
    before = torch.get_rng_state()
    chain = fit_generative_flow(data, settings, reports.append)
    assert torch.equal(before, torch.get_rng_state())
    samples = chain.sample(300, seed=5)
    noise = chain.mean + chain.spread * chain.noise(300, torch.Generator().manual_seed(5))
    apart = [energy_distance(real=data.flatten(1), generated=s.flatten(1)).value for s in (noise, samples)]
    assert apart[1] < apart[0] / 10
    assert float(samples.flatten(1).std(1).mean()) < 0.4 * float(noise.flatten(1).std(1).mean())
    assert [r.stage for r in reports] == [1, 2] and all(0 < r.unexplained < 1 for r in reports)
    assert reports[1].energy < reports[0].energy
    assert torch.equal(samples, chain.sample(300, seed=5)) and not torch.equal(samples, chain.sample(300, seed=6))
    assert torch.allclose(samples[:20], chain.sample(300, seed=5, batch=20)[:20], atol=1e-5)
    little = GeneratorSettings(particles=20, stages=2, flow=FlowSettings(steps=2), width=4, fit_steps=3)
    one, same = (fit_generative_flow(data, little).sample(10, seed=0) for _ in range(2))
    assert torch.equal(one, same)


def test_a_stage_starts_as_the_identity() -> None:
    assert torch.equal(Stage(3, 8)(normal(2, 3, 5, 6)), torch.zeros(2, 3, 5, 6))


@pytest.mark.parametrize(
    ("call", "fix"),
    [
        (lambda: FlowSettings(momentum=1), "0.8"),
        (lambda: FlowSettings(slices=0), "slices=24"),
        (lambda: FlowSettings(windows=(3,)), "shape="),
        (lambda: particle_flow(normal(3, 4), normal(3, 5)), "flatten"),
        (lambda: particle_flow(normal(3, 4), normal(3, 4), FlowSettings(windows=(2,), shape=(1, 3, 3))), "give theirs"),
        (lambda: GeneratorSettings(stages=5, flow=FlowSettings(steps=4)), "fewer stages"),
        (lambda: GeneratorSettings(batch=0), "GeneratorSettings"),
        (lambda: fit_generative_flow(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)), "float"),
    ],
)
def test_refuses_in_one_line(call, fix: str) -> None:
    with pytest.raises(UsageError, match=fix) as caught:
        call()
    assert "\n" not in str(caught.value)
