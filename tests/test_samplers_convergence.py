"""Orders are proved, not eyeballed: slopes and errors on the reference mixture, exact moments on a Gaussian."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from exact import FIRST, LAST, PATHS, START, Line, exact_u, level_of_lam, mixture, smooth_grid

from pilotage.registry import everything
from pilotage.samplers import SAMPLERS, Sampler, make_sampler
from pilotage.samplers.denoiser import ExactDenoiser
from pilotage.samplers.schedule import Level
from pilotage.samplers.table import PLACE, document

DETERMINISTIC = {
    "ddim": {},
    "euler": {},
    "euler-ancestral": {"eta": 0.0},
    "heun": {},
    "dpmpp-2m": {},
    "sde-dpmpp-2m": {"eta": 0.0},
    "dpmpp-2s": {},
    "dpmpp-2s-ancestral": {"eta": 0.0},
    "dpm2": {},
    "dpm2-ancestral": {"eta": 0.0},
    "dpmpp-3s": {},
    "dpmpp-3m": {},
    "sde-dpmpp-1": {"eta": 0.0},
    "sde-dpmpp-2s": {"eta": 0.0},
    "sde-dpmpp-3m": {"eta": 0.0},
    "unipc": {},
    "deis": {},
    "lms": {"order": 3},
    "plms": {},
    "exponential-rk": {},
    "flow-ancestral": {"eta": 0.0},
    "tcd": {"gamma": 0.0},
    "er-sde": {"phi": "ode"},
    "ucgm": {},
    "restart": {"repeats": 0},
}
ALWAYS_NOISE = {"ddpm", "lcm", "predictor-corrector", "langevin"}  # see test_samplers_stochastic
ORDER = {"unipc": 3, "plms": 2}  # with its corrector; and with weights for equal steps on unequal ones
OWN_START = {"unipc"}  # its corrector would work on a step that the reference has mended
# |x - exact| at N = 40 on the VP path, measured by an independent implementation; the others follow from the same u.
ERROR_AT_40 = {
    "ddim": 2.5e-2,
    "euler": 2.5e-2,
    "euler-ancestral": 2.5e-2,
    "heun": 2.1e-3,
    "dpmpp-2m": 5.2e-4,
    "sde-dpmpp-2m": 5.2e-4,
    "dpmpp-2s": 9.9e-4,
    "dpmpp-2s-ancestral": 9.9e-4,
    "dpm2": 8.5e-4,
    "dpm2-ancestral": 8.5e-4,
    "dpmpp-3s": 8.2e-6,
    "dpmpp-3m": 1.2e-4,
    "sde-dpmpp-1": 2.5e-2,
    "sde-dpmpp-2s": 9.9e-4,
    "sde-dpmpp-3m": 1.2e-4,
    "unipc": 3.6e-5,
    "deis": 2.3e-4,
    "lms": 1.5e-3,
    "plms": 7.1e-4,
    "exponential-rk": 4.4e-4,
    "flow-ancestral": 2.5e-2,
    "tcd": 2.5e-2,
    "er-sde": 5.6e-4,
    "ucgm": 1.7e-3,
    "restart": 2.1e-3,
}


def test_every_registered_sampler_is_under_test() -> None:
    assert set(everything("samplers", SAMPLERS)) == {*DETERMINISTIC} | ALWAYS_NOISE
    assert {*DETERMINISTIC} == {*ERROR_AT_40}


def solve(sampler: Sampler, path: str, steps: int, exact_start: bool = True) -> float:
    """Error at lam = LAST. exact_start: a method that looks back takes its first steps from the reference, until its
    history is full."""
    denoiser, levels = mixture(path), smooth_grid(path, steps)
    u = tuple(v / levels[0].alpha for v in START[path])
    state = sampler.init(torch.tensor([START[path]], dtype=torch.float64), levels, PATHS[path])
    while not state.done:
        state = sampler.tell(state, denoiser(state.x, state.level))
        if exact_start and state.stage == 0 and len(state.history) == state.step:
            level = levels[state.step]
            state = replace(state, x=level.alpha * exact_u(u, -math.log(level.rho))[None])
    return float((state.x[0] - levels[-1].alpha * exact_u(u, LAST)).norm())


def slope(coarse: float, fine: float) -> float:
    return math.log2(coarse / fine)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order(name: str, path: str) -> None:
    sampler = make_sampler(name, **DETERMINISTIC[name])
    order = ORDER.get(name, sampler.order)
    errors = [solve(sampler, path, n, name not in OWN_START) for n in (80, 160, 320)]
    for measured in map(slope, errors, errors[1:]):
        assert order - 0.25 < measured < order + 0.6, errors
    assert slope(errors[1], errors[2]) == pytest.approx(order, abs=0.15 if name in OWN_START else 0.1)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_error_is_that_of_an_independent_implementation(name: str) -> None:
    error = solve(make_sampler(name, **DETERMINISTIC[name]), "vp", 40, name not in OWN_START)
    assert ERROR_AT_40[name] / 1.5 < error < ERROR_AT_40[name] * 1.5


def test_the_multistep_method_keeps_its_order_with_its_own_start() -> None:
    sampler = make_sampler("dpmpp-2m")
    errors = [solve(sampler, "vp", n, exact_start=False) for n in (80, 160, 320)]
    assert slope(errors[1], errors[2]) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_same_u_on_every_path(name: str) -> None:
    sampler = make_sampler(name, **DETERMINISTIC[name])
    ends = []
    for path in PATHS:
        levels = smooth_grid(path, 23)
        x = levels[0].alpha * torch.tensor([[3.0, -2.0]], dtype=torch.float64)
        state = sampler.init(x, levels, PATHS[path])
        denoiser = mixture(path)
        while not state.done:
            state = sampler.tell(state, denoiser(state.x, state.level))
        ends.append(state.x / levels[-1].alpha)
    assert float((ends[0] - ends[1]).abs().max()) < 1e-12
    assert float((ends[0] - ends[2]).abs().max()) < 1e-12


# -- stochastic samplers: exact moments, no Monte Carlo ----------------------------------------------------------------


def moments(sampler: Sampler, levels: tuple[Level, ...], world: Line) -> tuple[float, float]:
    """Mean and variance at the end when x starts in the exact marginal. The run is affine in x and in every noise, so
    one batch of unit vectors gives all its coefficients: row 0 nothing, row 1 the start, row 2 + i the noise of step i.
    """
    steps = len(levels) - 1
    unit = torch.eye(steps + 2, dtype=torch.float64)[:, :, None]
    denoiser = ExactDenoiser(world, PATHS["vp"])
    state = sampler.init(unit[:, 1], levels)
    while not state.done:
        noise = unit[:, 2 + state.step] if sampler.wants_noise(state) else None
        state = sampler.tell(state, denoiser(state.x, state.level), noise)
    offset, effects = state.x[0, 0], state.x[1:, 0] - state.x[0, 0]
    mean = offset + effects[0] * levels[0].alpha * world.mean
    variance = effects[0] ** 2 * world.spread(levels[0]) + (effects[1:] ** 2).sum()
    return float(mean), float(variance)


REVERSE_SDE = ("ddim", "euler-ancestral", "sde-dpmpp-1", "sde-dpmpp-2m", "sde-dpmpp-3m")
STOCHASTIC = [(n, e) for n in REVERSE_SDE for e in (0.5, 1.0)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("name", "eta"), STOCHASTIC)
def test_weak_order(name: str, eta: float, path: str) -> None:
    sampler, world, errors = make_sampler(name, eta=eta), Line(), []
    order = 2 if name in ("sde-dpmpp-2m", "sde-dpmpp-3m") else 1  # weakly; 3M is no better than 2M on a Gaussian
    counts = (320, 640) if order == 2 else (80, 160)  # 2M's error changes sign before
    for n in counts:
        levels = smooth_grid(path, n)
        _, variance = moments(sampler, levels, world)
        errors.append(abs(variance / world.spread(levels[-1]) - 1))
    assert slope(*errors) == pytest.approx(order, abs=0.12), errors
    assert errors[-1] < (1e-5 if order == 2 else 5e-2)


@pytest.mark.parametrize("name", REVERSE_SDE)
def test_the_mean_of_the_reverse_sde_is_exact(name: str) -> None:
    # D_t is a martingale: at eta = 1 the mean is right for every grid, however coarse
    world = Line()
    for n in (2, 5, 40):
        levels = smooth_grid("vp", n)
        mean, _ = moments(make_sampler(name, eta=1.0), levels, world)
        assert mean == pytest.approx(levels[-1].alpha * world.mean, abs=1e-13)


def test_more_noise_needs_smaller_steps_but_all_members_agree_in_the_limit() -> None:
    world, levels = Line(), smooth_grid("vp", 640)
    for name, eta in STOCHASTIC:
        mean, variance = moments(make_sampler(name, eta=eta), levels, world)
        assert mean == pytest.approx(levels[-1].alpha * world.mean, abs=2e-3)
        assert variance == pytest.approx(world.spread(levels[-1]), rel=1e-2)


def test_the_reference_is_a_solution() -> None:
    # a second, independent solve: Heun with 4,000 steps
    levels = tuple(level_of_lam("ve", FIRST + (LAST - FIRST) * i / 4000) for i in range(4001))
    sampler, denoiser = make_sampler("heun"), mixture("ve")
    state = sampler.init(torch.tensor([START["ve"]], dtype=torch.float64), levels)
    while not state.done:
        state = sampler.tell(state, denoiser(state.x, state.level))
    assert float((state.x[0] - exact_u(START["ve"], LAST)).norm()) < 1e-5


def test_the_page_of_samplers_is_up_to_date() -> None:
    assert PLACE.read_text(encoding="utf-8") == document(), "run python -m pilotage.samplers.table"
