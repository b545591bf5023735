"""Samplers that take noise, and those that go back up: identities, exact moments, diffusers' own steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import diffusers as D
import numpy as np
import pytest
import tiny
import torch
from exact import PATHS, Line, level_of_lam, mixture, smooth_grid
from stock_schedulers import SD
from torch import Tensor

from pilotage import samplers
from pilotage.errors import UsageError
from pilotage.samplers import EnsembleDenoiser, SampledDenoiser, SeededNoise, iterate, make_grid, make_sampler, sample
from pilotage.samplers.denoiser import ExactDenoiser
from pilotage.samplers.lcm import distilled_levels, latent_consistency
from pilotage.samplers.prediction import EPSILON, SAMPLE, Prediction
from pilotage.samplers.sampler import Sampler, rises
from pilotage.samplers.schedule import Level, RectifiedFlow, VarianceExploding, stable_diffusion_schedule
from pilotage.zoo import toy

SEEDS = SeededNoise([3, 1, 4])
X = SEEDS.initial((2,), dtype=torch.float64)
CLEAN = Level(0.0, 1.0, 0.0)


def run(sampler: Sampler, levels: tuple[Level, ...], x: Tensor, denoiser: Any, seeds: Any = SEEDS) -> Tensor:
    state = sampler.init(x, levels, denoiser.schedule)
    while not state.done:
        noise = seeds.draw("step", state.step, state.x) if sampler.wants_noise(state) else None
        state = sampler.tell(state, denoiser(state.x, state.level), noise)
    return state.x


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def slope(coarse: float, fine: float) -> float:
    return math.log2(coarse / fine)


# -- one first-order step covers a family ------------------------------------------------------------------------------

ANCESTRAL = {
    "ddim": {"eta": 1.0},
    "ddpm": {},
    "euler-ancestral": {},
    "sde-dpmpp-1": {"eta": 1.0},
    "er-sde": {"order": 1, "phi": "sde"},
    "predictor-corrector": {"corrections": 0, "predictor": "ancestral"},
}
PLAIN = {
    "ddim": {},
    "euler": {},
    "flow-ancestral": {"eta": 0.0},
    "tcd": {"gamma": 0.0},
    "er-sde": {"order": 1, "phi": "ode"},
    "ucgm": {"kappa": 0.0},
}


@pytest.mark.parametrize("family", [ANCESTRAL, PLAIN], ids=["ancestral", "plain"])
@pytest.mark.parametrize("path", PATHS)
def test_names_of_one_step(path: str, family: dict[str, dict[str, Any]]) -> None:
    levels = (*smooth_grid(path, 9), CLEAN)
    scale = levels[0].alpha + levels[0].sigma
    first, *others = (run(make_sampler(n, **s), levels, X * scale, mixture(path)) for n, s in family.items())
    for other in others:
        assert far(first, other) < 1e-14 * scale


@pytest.mark.parametrize("path", PATHS)
def test_all_noise_fresh_is_the_consistency_multistep(path: str) -> None:
    levels, denoiser = (*smooth_grid(path, 6), CLEAN), mixture(path)
    x = X * levels[0].sigma
    expected = x
    for i, (level, goal) in enumerate(pairwise(levels)):
        expected = goal.alpha * denoiser(expected, level).denoised + goal.sigma * SEEDS.draw("step", i, x)
    assert far(run(make_sampler("lcm"), levels, x, denoiser), expected) < 1e-14
    assert far(run(make_sampler("ucgm", kappa=0.0, rho_s=1.0), levels, x, denoiser), expected) < 1e-14


def test_flow_ancestral_injects_less_noise_than_ancestral_sampling() -> None:
    level, goal = level_of_lam("flow", -0.7), level_of_lam("flow", 0.4)
    shares = [make_sampler(n).plan((level, goal))[0].weights[2] / goal.sigma for n in ("flow-ancestral", "ddim:eta=1")]
    assert shares == [pytest.approx(0.881, abs=5e-4), pytest.approx(0.943, abs=5e-4)]


def test_the_variances_of_ddpm_are_those_of_the_paper() -> None:
    schedule = stable_diffusion_schedule()
    levels = schedule.levels([601, 600])
    beta = 1 - (levels[0].alpha / levels[1].alpha) ** 2
    small, large = (make_sampler("ddpm", variance=v).plan(levels)[0].weights for v in ("small", "large"))
    assert large[2] ** 2 == pytest.approx(beta, rel=1e-12)
    assert small[2] ** 2 == pytest.approx(beta * levels[1].sigma ** 2 / levels[0].sigma ** 2, rel=1e-12)
    assert small[:2] == large[:2]
    ve = VarianceExploding().levels([3.0, 2.0])  # "reverse diffusion"
    assert make_sampler("ddpm:variance=large").plan(ve)[0].weights[2] == pytest.approx(math.sqrt(5), rel=1e-12)
    with pytest.raises(UsageError, match='"small" or "large"'):
        make_sampler("ddpm:variance=medium")


@pytest.mark.parametrize("schedule", [stable_diffusion_schedule(), RectifiedFlow(), VarianceExploding()])
def test_tcd_goes_down_and_back_up(schedule: Any) -> None:
    levels = make_grid("karras", schedule, 6)
    for leg in make_sampler("tcd", gamma=0.4).plan(levels, schedule)[:-1]:
        alpha, kept, fresh = leg.weights
        time = 0.6 * float(schedule.t_of_rho(leg.goal.rho))
        s = schedule.level(math.floor(time + 1e-6) if schedule.T == 999 else time)
        up = leg.goal.alpha / s.alpha
        assert alpha == pytest.approx(up * s.alpha, rel=1e-12) and kept == pytest.approx(up * s.sigma, rel=1e-9)
        assert fresh**2 == pytest.approx(leg.goal.sigma**2 - (up * s.sigma) ** 2, rel=1e-9)
    with pytest.raises(UsageError, match="pass the schedule"):
        make_sampler("tcd").plan(levels)
    with pytest.raises(UsageError, match="between 0 and 1"):
        make_sampler("tcd:gamma=1.5")


# -- exact moments on a Gaussian, no Monte Carlo -----------------------------------------------------------------------


class Moments:
    """The run is affine in x and in every noise, so one batch of unit vectors gives all its coefficients: row 0 is
    nothing, row 1 the start, row 2 + i the noise of leg i."""

    def __init__(self, sampler: Sampler, levels: tuple[Level, ...], path: str = "vp", world: Line | None = None):
        self.world = world or Line()
        denoiser = ExactDenoiser(self.world, PATHS[path])
        state = sampler.init(torch.empty(0), levels, denoiser.schedule)
        unit = torch.eye(len(state.legs) + 2, dtype=torch.float64)[:, :, None]
        state, self.start, self.seen = replace(state, x=unit[:, 1]), levels[0], []
        while not state.done:
            noise = unit[:, 2 + state.step] if sampler.wants_noise(state) else None
            prediction = denoiser(state.x, state.level)
            if state.stage == 0:
                self.seen.append(prediction.denoised)
            state = sampler.tell(state, prediction, noise)
        self.x = state.x

    def of(self, values: Tensor) -> tuple[float, float]:
        """Mean and variance when x starts in the exact marginal."""
        offset, effects = values[0, 0], values[1:, 0] - values[0, 0]
        mean = offset + effects[0] * self.start.alpha * self.world.mean
        variance = effects[0] ** 2 * self.world.spread(self.start) + (effects[1:] ** 2).sum()
        return float(mean), float(variance)

    def given(self, values: Tensor, x: float) -> float:
        """Mean when x starts at a point."""
        return float(values[0, 0] + (values[1, 0] - values[0, 0]) * x)


WEAK = [
    ("ddpm", {}, 1),
    ("ddpm", {"variance": "large"}, 1),
    ("sde-dpmpp-1", {"eta": 1.0}, 1),
    ("er-sde", {"order": 1}, 1),
    ("er-sde", {"order": 1, "phi": "sde"}, 1),
    ("er-sde", {"order": 2}, 2),
    ("er-sde", {"order": 2, "phi": "sde"}, 2),
    ("tcd", {"gamma": 0.0}, 1),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("name", "settings", "order"), WEAK)
def test_weak_order(name: str, settings: dict[str, Any], order: int, path: str) -> None:
    sampler, world, errors = make_sampler(name, **settings), Line(), []
    for n in (80, 160):
        levels = smooth_grid(path, n)
        moments = Moments(sampler, levels, path)
        _, variance = moments.of(moments.x)
        errors.append(abs(variance / world.spread(levels[-1]) - 1))
    assert slope(*errors) == pytest.approx(order, abs=0.12), errors
    assert errors[-1] < (1e-3 if order == 2 else 5e-2)


@pytest.mark.parametrize("phi", ["sde", "default"])
def test_order_3_of_er_sde_is_no_worse_than_order_2(phi: str) -> None:
    levels, errors = smooth_grid("vp", 80), []
    for order in (1, 2, 3):
        moments = Moments(make_sampler("er-sde", order=order, phi=phi), levels)
        errors.append(abs(moments.of(moments.x)[1] / Line().spread(levels[-1]) - 1))
    assert errors[1] < errors[0] / 10 and errors[2] < errors[0] / 10, errors


@pytest.mark.parametrize(("name", "settings"), [*ANCESTRAL.items(), ("ddpm", {"variance": "large"})])
def test_denoised_is_a_martingale(name: str, settings: dict[str, Any]) -> None:
    # from one point, not only on average over the start, and however coarse the grid
    for n in (3, 11):
        moments = Moments(make_sampler(name, **settings), smooth_grid("vp", n))
        for x in (-1.0, 2.0):
            first = moments.given(moments.seen[0], x)
            assert [moments.given(d, x) for d in moments.seen] == pytest.approx([first] * n, abs=1e-13)


def test_an_ode_is_no_martingale() -> None:
    moments = Moments(make_sampler("ddim"), smooth_grid("vp", 11))
    assert abs(moments.given(moments.seen[-1], 2.0) - moments.given(moments.seen[0], 2.0)) > 0.1


@pytest.mark.parametrize("path", PATHS)
def test_er_sde_weights_by_fine_quadrature(path: str) -> None:
    # D = a + b rho + c rho^2 along the path: order 3 reproduces the stochastic integral's mean exactly
    levels, phi = smooth_grid(path, 7), lambda z: z * (np.exp(z**0.3) + 10)
    leg = make_sampler("er-sde").plan(levels)[5]
    values = [1.0 - 0.5 * l.rho + 0.3 * l.rho**2 for l in levels[3:6]][::-1]
    rho, goal = levels[5].rho, levels[6].rho
    z, weights = np.polynomial.legendre.leggauss(400)
    z, weights = goal + (rho - goal) * (z + 1) / 2, weights * (rho - goal) / 2
    r, slopes = phi(goal) / phi(rho), -0.5 + 0.6 * z
    wanted = (1 - r) * values[0] + float((weights * slopes * (phi(goal) / phi(z) - 1)).sum())
    assert sum(w * v for w, v in zip(leg.weights.past, values)) == pytest.approx(levels[6].alpha * wanted, rel=1e-12)
    assert leg.weights.keep == pytest.approx(levels[6].alpha / levels[5].alpha * r, rel=1e-12)
    assert leg.weights.fresh == pytest.approx(levels[6].alpha * math.sqrt(goal**2 - (rho * r) ** 2), rel=1e-12)


def test_er_sde_of_order_3_is_of_order_3_and_the_published_one_of_order_2() -> None:
    from test_samplers_convergence import solve

    measured = {}
    for third in ("exact", "reference"):
        errors = [solve(make_sampler("er-sde", phi="ode", third=third), "vp", n) for n in (80, 160)]
        measured[third] = slope(*errors)
    assert measured["exact"] == pytest.approx(3, abs=0.1) and measured["reference"] == pytest.approx(2, abs=0.1)


# -- UCGM --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "order"),
    [
        ({"kappa": 0.0}, 1),
        ({"kappa": 0.2}, 1),
        ({"kappa": 1 / 3}, 2),
        ({"kappa": 0.5}, 1),
        ({}, 2),
        ({"kappa": 0.0, "heun": True}, 2),
        ({"kappa": 0.5, "heun": True}, 1),
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_order_of_ucgm(path: str, settings: dict[str, Any], order: int) -> None:
    from test_samplers_convergence import solve

    sampler = make_sampler("ucgm", **settings)
    errors = [solve(sampler, path, n, exact_start=False) for n in (160, 320)]
    assert slope(*errors) == pytest.approx(order, abs=0.1), errors
    assert sampler.order == order or settings["kappa"] == 1 / 3  # 1/3 is right for even steps only


@pytest.mark.parametrize("heun", [False, True])
@pytest.mark.parametrize("rho_s", [0.0, 0.6, "auto"])
@pytest.mark.parametrize("last", ["raw", "extrapolated"])
def test_ucgm_is_its_algorithm(heun: bool, rho_s: Any, last: str) -> None:
    """Written out on rectified flow, where the source's t is sigma."""
    if heun and rho_s:
        with pytest.raises(UsageError, match="leave rho_s at 0"):
            make_sampler("ucgm", heun=True, rho_s=rho_s)
        return
    levels, denoiser, kappa = make_grid("ucgm", RectifiedFlow(), 7), mixture("flow"), 0.4
    share = rho_s
    if rho_s == "auto":
        share = min(1.0, 2 * (levels[0].sigma - levels[1].sigma) * levels[0].sigma / levels[1].sigma ** 2)
        assert 0 < share < 1
    x, before = X, None
    for i, (level, goal) in enumerate(pairwise(levels)):
        p = denoiser(x, level)
        clean = raw = p.denoised
        e = p.noise
        if i >= 2:
            clean, e = clean + kappa * (clean - before[0]), e + kappa * (e - before[1])
        before = (p.denoised, p.noise)
        fresh = SEEDS.draw("step", i, x)
        ahead = goal.alpha * clean + goal.sigma * (math.sqrt(1 - share) * e + math.sqrt(share) * fresh)
        if heun and goal.sigma > 0:
            ratio = goal.alpha / level.alpha
            ahead = ratio * x + (goal.sigma - ratio * level.sigma) * (e + denoiser(ahead, goal).noise) / 2
        x = ahead
    ours = run(make_sampler("ucgm", kappa=kappa, rho_s=rho_s, heun=heun, last=last), levels, X, denoiser)
    assert far(ours, raw if last == "raw" else x) < 1e-13


def test_ucgm_refuses_what_it_does_not_know() -> None:
    for line, message in (("kappa=auto", 'a number or "auto2"'), ("rho_s=2", "between 0 and 1"), ("last=x", "raw")):
        with pytest.raises(UsageError, match=message):
            make_sampler(f"ucgm:{line}")


def test_the_grid_of_ucgm() -> None:
    s = np.linspace(0.001, 0.999, 9)
    wanted = 1 - (1 - (1 - s**1.17) ** 0.8) ** 1.1
    assert np.allclose([l.sigma for l in make_grid("ucgm", RectifiedFlow(), 9)], [*wanted, 0.0], rtol=1e-12)
    s = np.linspace(0, 1, 10)[:-1]  # without gaps: from pure noise, and the clean end is one more point
    even = make_grid("ucgm:a=1,b=1,c=1,first=0,last=0", RectifiedFlow(), 9)
    assert np.allclose([l.sigma for l in even], [*(1 - s), 0.0], rtol=1e-12)
    schedule = stable_diffusion_schedule()
    other = make_grid("ucgm:first=0,last=0", schedule, 9)
    assert other[0].rho == pytest.approx(schedule.level(999).rho) and other[-2].rho > schedule.level(0).rho
    with pytest.raises(UsageError, match="above 0"):
        make_grid("ucgm:a=0", schedule, 9)


# -- churn -------------------------------------------------------------------------------------------------------------


def test_churn_is_algorithm_2() -> None:
    levels, denoiser = (*smooth_grid("ve", 8), CLEAN), mixture("ve")
    churn, low, high, s_noise = 1.6, 0.3, 4.0, 1.05
    x = expected = 12 * X
    gain = min(churn / 9, math.sqrt(2) - 1)
    churned = 0
    for i, (a, b) in enumerate(pairwise(levels)):
        rho = a.sigma
        if i and low <= rho <= high:
            churned += 1
            rho *= 1 + gain
            up = math.sqrt(rho**2 - a.sigma**2) * s_noise
            expected = expected + up * SEEDS.draw("step", i - 1, x)  # at the end of the step before
        d = (expected - denoiser(expected, Level(0.0, 1.0, rho)).denoised) / rho
        ahead = expected + (b.sigma - rho) * d
        if b.sigma > 0:
            ahead = expected + (b.sigma - rho) * (d + (ahead - denoiser(ahead, b).denoised) / b.sigma) / 2
        expected = ahead
    assert 3 <= churned <= 6
    sampler = make_sampler(f"heun:churn={churn},low={low},high={high},noise={s_noise}")
    assert far(run(sampler, levels, x, denoiser), expected) < 1e-12


def test_a_churned_step_tells_the_network_its_own_time() -> None:
    schedule = stable_diffusion_schedule()
    levels = make_grid("karras", schedule, 10)
    legs = make_sampler("heun:churn=100,low=0.1,high=10").plan(levels, schedule)
    for level, leg in zip(levels, legs):
        inside = 0.1 <= level.rho <= 10
        assert leg.level.rho == pytest.approx(level.rho * (math.sqrt(2) if inside else 1), rel=1e-9)
        assert leg.level.time == pytest.approx(float(schedule.t_of_rho(leg.level.rho)), rel=1e-9)
    with pytest.raises(UsageError, match="pass the schedule"):
        make_sampler("heun:churn=1").plan(levels)
    with pytest.raises(UsageError, match="at least 0"):
        make_sampler("heun:churn=-1")


@pytest.mark.parametrize("path", PATHS)
def test_churn_keeps_the_marginal(path: str) -> None:
    # churn of a fixed share of the steps' number: as much noise a step, whatever N, so the limit is an SDE
    errors = []
    for n in (80, 160):
        levels = smooth_grid(path, n)
        sampler = make_sampler("heun", churn=8.0)
        moments = Moments(sampler, levels, path)
        mean, variance = moments.of(moments.x)
        errors.append(abs(variance / Line().spread(levels[-1]) - 1))
        assert mean == pytest.approx(levels[-1].alpha * Line().mean, abs=2e-3)
    assert errors[1] < 3e-3 and slope(*errors) > 0.9, errors
    too_much = Moments(make_sampler("heun:churn=8,noise=1.1"), levels, path)
    assert too_much.of(too_much.x)[1] > 1.01 * Line().spread(levels[-1])


# -- restart -----------------------------------------------------------------------------------------------------------


def test_restart_is_algorithm_1() -> None:
    schedule, denoiser = VarianceExploding(0.02, 20.0), mixture("ve")
    levels, s_noise = make_grid("karras", schedule, 7), 1.02
    x = expected = 20 * X
    draws: list[int] = []

    def heun(x: Tensor, rhos: list[float]) -> Tensor:
        for a, b in pairwise(rhos):
            d = (x - denoiser(x, Level(0.0, 1.0, a)).denoised) / a
            ahead = x + (b - a) * d
            if b > 0:
                ahead = x + (b - a) * (d + (ahead - denoiser(ahead, Level(0.0, 1.0, b)).denoised) / b) / 2
            x = ahead
        return x

    rhos, legs = [l.sigma for l in levels], 0
    for i in range(7):
        expected, legs = heun(expected, rhos[i : i + 2]), legs + 1
        for low, high, points, repeats in ((0.5, 3.0, 4, 2), (0.1, 0.4, 3, 1)):
            bottom = min(rhos[1:-1], key=lambda r: abs(r - low))
            for _ in range(repeats if rhos[i + 1] == bottom else 0):
                draws.append(legs - 1)
                expected = expected + math.sqrt(high**2 - bottom**2) * s_noise * SEEDS.draw("step", legs - 1, x)
                down = (np.linspace(high ** (1 / 7), bottom ** (1 / 7), points) ** 7).tolist()
                expected, legs = heun(expected, [*down[:-1], bottom]), legs + points - 1
    sampler = samplers.restart.RestartSampler(intervals=((0.5, 3.0, 4, 2), (0.1, 0.4, 3, 1)), noise=s_noise)
    state = sampler.init(x, levels, schedule)
    assert len(draws) == 3 and len(state.legs) == 7 + 2 * 3 + 2
    assert [i for i in range(len(state.legs)) if rises(replace(state, step=i))] == draws
    assert far(run(sampler, levels, x, ExactDenoiser(denoiser.world, schedule)), expected) < 1e-11


def test_restart_in_words_and_in_words_of_its_errors() -> None:
    schedule = stable_diffusion_schedule()
    levels = make_grid("karras", schedule, 10)
    one = make_sampler("restart:low=0.3,high=2,points=4,repeats=3")
    assert one.plan(levels, schedule) == replace(one, intervals=((0.3, 2, 4, 3),)).plan(levels, schedule)
    assert len(one.plan(levels, schedule)) == 10 + 9
    assert make_sampler("restart:repeats=0").plan(levels) == make_sampler("heun").plan(levels)
    assert not make_sampler("restart:repeats=0").stochastic and one.stochastic
    for line, message in (("low=3,high=2", "0 < low < high"), ("points=1", "points of at least 2")):
        with pytest.raises(UsageError, match=message):
            make_sampler(f"restart:{line}")
    with pytest.raises(UsageError, match="take more steps"):
        one.plan(make_grid("trailing", schedule, 1), schedule)
    with pytest.raises(UsageError, match="pass the schedule"):
        one.plan(levels)


class Imperfect:
    """The mixture's denoiser with an error that is smooth in x and of the size of `error` at medium noise."""

    def __init__(self, error: float):
        self.world, self.schedule, self.error = toy.g3(), VarianceExploding(0.02, 20.0), error

    def __call__(self, x: Tensor, level: Level, condition: Any = None) -> Prediction:
        rho = level.rho
        wave = torch.sin(2 * x / math.hypot(1, rho) + torch.tensor([0.3, 1.1]))
        clean = self.world.denoised(x, level.alpha, level.sigma) + self.error * rho / (1 + rho) * wave
        return Prediction(x, level, clean, SAMPLE)


def sliced_distance(a: Tensor, b: Tensor) -> float:
    """Root mean square of the sorted differences over 16 directions: the sliced Wasserstein distance."""
    angles = torch.arange(16, dtype=torch.float64) * math.pi / 16
    along = torch.stack([angles.cos(), angles.sin()])
    return float((torch.sort(a @ along, 0)[0] - torch.sort(b @ along, 0)[0]).square().mean().sqrt())


@pytest.mark.parametrize("error", [0.0, 0.1])
def test_restart_forgets_the_errors_of_a_coarse_run(error: float) -> None:
    """What the paper claims: the contraction of fresh noise. In this plane a finer Heun run does the same, for a little
    more evaluations and down to the error of the denoiser itself."""
    denoiser, count = Imperfect(error), 4000
    generator = torch.Generator().manual_seed(0)
    truth, start = (denoiser.world.sample(count, generator) for _ in range(2))
    start = start + 20 * torch.randn(count, 2, generator=generator, dtype=torch.float64)

    def distance(line: str) -> float:
        class Draws:
            def draw(self, purpose: str, step: int, like: Tensor) -> Tensor:
                return torch.randn(like.shape, generator=generator, dtype=like.dtype)

        levels = make_grid("karras", denoiser.schedule, 8)
        return sliced_distance(run(make_sampler(line), levels, start, denoiser, Draws()), truth)

    coarse, restarted = distance("heun"), distance("restart:low=0.3,high=2,points=4,repeats=2")
    assert restarted < 0.7 * coarse, (coarse, restarted)


# -- Langevin ----------------------------------------------------------------------------------------------------------


def test_annealed_langevin_is_the_program_of_its_authors() -> None:
    schedule, denoiser = VarianceExploding(0.01, 1.0, "sigma"), mixture("ve")
    levels = make_grid("exponential", schedule, 5)
    for convention, double in (("code", 1.0), ("paper", 0.5)):
        x, leg = X, 0
        for level in levels[:-1]:
            step = double * 2e-5 * (level.sigma / 0.01) ** 2
            for _ in range(4):
                score = -denoiser(x, level).noise / level.sigma
                x = x + step * score + math.sqrt(2 * step) * SEEDS.draw("step", leg, x)
                leg += 1
        settings = dict(repeats=4, step_convention=convention)
        raw = run(make_sampler("langevin", denoise=False, **settings), levels, X, ExactDenoiser(toy.g3(), schedule))
        assert far(raw, x) < 1e-12
        sampler = make_sampler("langevin", **settings)
        assert far(run(sampler, levels, X, ExactDenoiser(toy.g3(), schedule)), denoiser(x, levels[-2]).denoised) < 1e-12
        assert len(sampler.plan(levels)) == 5 * 4 + 1


@pytest.mark.parametrize("path", PATHS)
def test_langevin_is_the_same_in_u_on_every_path(path: str) -> None:
    ends = []
    for p in (path, "ve"):
        levels = (*smooth_grid(p, 5), CLEAN)
        ends.append(run(make_sampler("langevin:repeats=3,step_size=1e-3"), levels, 9 * levels[0].alpha * X, mixture(p)))
    assert far(*ends) < 1e-12


def test_langevin_says_what_it_cannot_do() -> None:
    with pytest.raises(UsageError, match="below pure noise"):
        make_sampler("langevin").plan(make_grid("flow", RectifiedFlow(), 4))
    with pytest.raises(UsageError, match="too long"):
        make_sampler("langevin").plan(make_grid("karras", VarianceExploding(), 4))
    for line, message in (("repeats=0", "at least 1"), ("step_convention=both", "code")):
        with pytest.raises(UsageError, match=message):
            make_sampler(f"langevin:{line}")


# -- predictor-corrector -----------------------------------------------------------------------------------------------


def stationary(sampler: Sampler, path: str) -> tuple[float, float]:
    """Relative error of the variance, and of the mean, after so many corrections at one level that nothing changes."""
    levels = (level_of_lam(path, 0.3), level_of_lam(path, 0.5))
    state, world = sampler.init(torch.empty(0), levels, PATHS[path]), Line()
    state = replace(state, legs=state.legs[:-1])  # the corrections without the predictor
    unit = torch.eye(len(state.legs) + 2, dtype=torch.float64)[:, :, None]
    state, denoiser = replace(state, x=unit[:, 1]), ExactDenoiser(world, PATHS[path])
    while not state.done:
        assert state.leg.level == state.goal and sampler.wants_noise(state)
        state = sampler.tell(state, denoiser(state.x, state.level), unit[:, 2 + state.step])
    offset, effects = state.x[0, 0], state.x[1:, 0] - state.x[0, 0]
    spread = world.spread(levels[0])
    variance = effects[0] ** 2 * spread + (effects[1:] ** 2).sum()
    mean = offset + effects[0] * levels[0].alpha * world.mean
    return float(variance / spread - 1), float(mean - levels[0].alpha * world.mean)


@pytest.mark.parametrize("path", PATHS)
def test_a_corrector_keeps_the_marginal_up_to_its_step(path: str) -> None:
    errors = []
    for snr in (0.2, 0.1):  # the step goes with the square
        error, mean = stationary(make_sampler("predictor-corrector", corrector="ald", snr=snr, corrections=400), path)
        errors.append(error)
        assert mean == pytest.approx(0, abs=1e-12)
    assert 0 < errors[1] < 0.01
    assert slope(*errors) == pytest.approx(2, abs=0.1)


def test_a_corrector_with_norms_keeps_the_marginal() -> None:
    # in many dimensions |z| / |g| hardly varies, so the step is known: 2 (snr sigma)^2 times the spread of x
    world, level = Line(), level_of_lam("vp", 0.3)
    sampler = make_sampler("predictor-corrector", snr=0.05, corrections=30)
    generator = torch.Generator().manual_seed(0)

    def unit() -> Tensor:
        return torch.randn(3, 100_000, generator=generator, dtype=torch.float64)

    x = level.alpha * world.mean + math.sqrt(world.spread(level)) * unit()
    state = sampler.init(x, (level, level_of_lam("vp", 0.5)))
    for _ in range(30):
        state = sampler.tell(state, ExactDenoiser(world, PATHS["vp"])(state.x, state.level), unit())
    assert float((state.x - x).square().mean()) > 0.1 * world.spread(level)  # it has moved
    assert float(state.x.var()) == pytest.approx(world.spread(level), rel=1e-2)


@pytest.mark.parametrize("correct_steps", [1, 2])
def test_predictor_corrector_is_that_of_diffusers(correct_steps: int) -> None:
    n, denoiser = 12, mixture("ve")
    stock = D.ScoreSdeVeScheduler(sigma_min=0.02, sigma_max=20.0, snr=0.15)
    stock.set_timesteps(n)
    stock.set_sigmas(n)
    levels = (*VarianceExploding(0.02, 20.0, "sigma").levels(stock.discrete_sigmas.flip(0).double()), CLEAN)
    x = 20 * torch.randn(1, 2, generator=torch.Generator().manual_seed(1))

    generator, theirs = torch.Generator().manual_seed(2), x
    for level, t in zip(levels, stock.timesteps):
        for _ in range(correct_steps):
            score = -denoiser(theirs.double(), level).noise.float() / level.sigma
            theirs = stock.step_correct(score, theirs, generator=generator).prev_sample
        score = -denoiser(theirs.double(), level).noise.float() / level.sigma
        out = stock.step_pred(score, t, theirs, generator=generator)
        theirs = out.prev_sample
    theirs = out.prev_sample_mean  # what the pipeline returns

    generator = torch.Generator().manual_seed(2)
    sampler = make_sampler("predictor-corrector", snr=0.15, corrections=correct_steps)
    state = sampler.init(x.double(), levels)
    while not state.done:
        noise = torch.randn(1, 2, generator=generator).double() if sampler.wants_noise(state) else None
        state = sampler.tell(state, denoiser(state.x, state.level), noise)
    assert len(state.legs) == n * (correct_steps + 1)
    assert far(state.x, theirs.double()) < 1e-4


def test_the_corrector_on_vp_knows_beta() -> None:
    schedule = stable_diffusion_schedule()
    levels = schedule.levels([700, 650])
    beta = 1 - (levels[0].alpha / schedule.level(699).alpha) ** 2
    weights = make_sampler("predictor-corrector:corrector=ald").plan(levels, schedule)[0].weights
    step = 2 * (1 - beta) * (0.16 * levels[0].sigma) ** 2
    assert weights.reach == pytest.approx(math.sqrt(2 * step), rel=1e-12)
    assert weights.reach * weights.pull == pytest.approx(step / levels[0].sigma, rel=1e-12)


def test_correctors_run_on_the_base_alone() -> None:
    levels, denoiser = smooth_grid("vp", 3), mixture("vp")
    sampler = make_sampler("predictor-corrector")
    state = sampler.init(X, levels)
    base = denoiser(state.x, state.level)
    guided = base.with_denoised(base.denoised + 1).renoised_with(base)
    noise = SEEDS.draw("step", 0, X)
    corrected, plain = sampler.tell(state, guided, noise), sampler.tell(state, base, noise)
    assert torch.equal(corrected.x, plain.x)
    base = denoiser(plain.x, plain.level)
    guided = base.with_denoised(base.denoised + 1).renoised_with(base)
    moved = sampler.tell(corrected, guided, noise).x - sampler.tell(plain, base, noise).x
    assert far(moved, torch.full_like(moved, levels[1].alpha)) < 1e-13


# -- rows --------------------------------------------------------------------------------------------------------------

VARIANTS = [
    "ddpm:variance=large",
    "flow-ancestral:eta=0.7,noise=1.1",
    "tcd:gamma=0.5",
    "er-sde:phi=sde,third=reference",
    "ucgm:kappa=0.5,rho_s=auto",
    "heun:churn=2",
    "restart:low=0.3,high=2,points=3,repeats=2",
    "predictor-corrector:corrections=2",
    "predictor-corrector:corrector=ald,predictor=ancestral",
    "langevin:repeats=3,step_convention=paper,step_size=1e-4",
]


@pytest.mark.parametrize("line", VARIANTS)
def test_a_row_alone_is_the_row_in_its_batch(line: str) -> None:
    denoiser = ExactDenoiser(toy.g3(), stable_diffusion_schedule())
    settings: dict[str, Any] = dict(sampler=line, grid="karras", steps=8)
    together = sample(denoiser, X, noise=SEEDS, **settings)
    for row, seed in enumerate(SEEDS.seeds):
        alone = sample(denoiser, X[row : row + 1], noise=SeededNoise([seed]), **settings)
        assert far(together[row], alone[0]) < 1e-13
    other = sample(denoiser, X, noise=SeededNoise([3, 1, 5]), **settings)
    assert far(together[:2], other[:2]) == 0 and far(together[2], other[2]) > 0
    with pytest.raises(UsageError, match="pass noise=SeededNoise"):
        next(iterate(denoiser, X, **settings))


# -- diffusers, step by step with the same noise -----------------------------------------------------------------------

PICTURES = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def network(x: Tensor, t: Any) -> Tensor:
    return torch.tanh(x.flip(-1) + 0.3 * x.roll(1, 1)) + 0.1 * torch.sin(torch.as_tensor(float(t)) / 150)


def drive(
    scheduler: Any, x: Tensor = PICTURES, start: int = 0, time: Callable[[Any], Any] = float, **more: Any
) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    for t in scheduler.timesteps[start:]:
        x = scheduler.step(network(x, time(t)), t, x, generator=generators, return_dict=False, **more)[0]
    return x


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_lcm(steps: int, prediction: str) -> None:
    stock = D.LCMScheduler(**SD, prediction_type=prediction)
    ours = samplers.LCM.from_config(stock.config)
    for s in (stock, ours):
        s.set_timesteps(steps)
    assert ours.timesteps.tolist() == stock.timesteps.tolist()
    assert relative(drive(ours), drive(stock)) < 1e-4


def test_the_boundary_of_lcm_is_x_at_time_0_and_next_to_nothing_elsewhere() -> None:
    stock, kind = D.LCMScheduler(**SD), latent_consistency(EPSILON)
    schedule = stable_diffusion_schedule()
    for time in (0, 1, 3, 19, 999):
        level = schedule.level(time)
        skip, out = stock.get_scalings_for_boundary_condition_discrete(time)
        plain = EPSILON.denoised(level)
        assert kind.denoised(level) == pytest.approx((skip + out * plain[0], out * plain[1]), rel=1e-12)
    assert kind.denoised(schedule.level(0)) == (1.0, 0.0)
    assert kind.denoised(schedule.level(19)) == pytest.approx(EPSILON.denoised(schedule.level(19)), rel=1e-4)
    assert kind.noise(level) == EPSILON.noise(level)


def test_students_take_as_many_steps_as_they_were_distilled_on() -> None:
    with pytest.raises(UsageError, match="takes 1 to 50 steps, not 51"):
        distilled_levels(stable_diffusion_schedule(), 51)
    ours = samplers.LCM(**SD, grid="trailing")  # a grid that is asked for is taken
    ours.set_timesteps(60)
    assert len(ours.timesteps) == 60
    flow = samplers.LCM.from_config(D.FlowMatchLCMScheduler(shift=3.0).config)
    flow.set_timesteps(4)
    assert flow.kind.name == "flow_prediction" and len(flow.timesteps) == 4


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [2, 4, 7])
def test_tcd(steps: int, gamma: float, prediction: str) -> None:
    stock = D.TCDScheduler(**SD, prediction_type=prediction)
    ours = samplers.TCD.from_config(stock.config, settings={"gamma": gamma})
    for s in (stock, ours):
        s.set_timesteps(steps)
    assert ours.timesteps.tolist() == stock.timesteps.tolist()
    theirs = drive(stock, eta=gamma)
    assert 1e-3 < relative(drive(ours), theirs) < 0.1  # stock stops at the first level of its table, rho = 0.03
    ours._use((*ours.levels[:-1], ours.schedule.level(0)), "cpu")
    assert relative(drive(ours), theirs) < 2e-5


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("steps", [5, 20])
def test_ddpm(steps: int, variance: str) -> None:
    settings = dict(SD, timestep_spacing="leading")
    stock = D.DDPMScheduler(**settings, clip_sample=False, variance_type=f"fixed_{variance}")
    ours = samplers.DDPM(**settings, settings={"variance": variance})
    for s in (stock, ours):
        s.set_timesteps(steps)
    assert ours.timesteps.tolist() == stock.timesteps.tolist()
    assert relative(drive(ours), drive(stock)) < 1e-4


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_flow_ancestral_is_that_of_ltx(eta: float) -> None:
    stock = D.LTXEulerAncestralRFScheduler(eta=eta, s_noise=0.9)
    ours = samplers.FlowAncestral.from_config(stock.config)
    assert (ours.sampler.eta, ours.sampler.noise) == (eta, 0.9)
    sigmas = torch.linspace(1, 0, 13)[1:-1]  # stock adds noise of a size 1e-6 at pure noise
    stock.set_timesteps(sigmas=[*sigmas.tolist(), 0.0])
    ours.set_timesteps(sigmas=sigmas.tolist())
    assert torch.allclose(ours.sigmas, stock.sigmas, atol=1e-6)
    assert relative(drive(ours, time=lambda t: 0), drive(stock, time=lambda t: 0)) < 1e-4


# -- in pipelines ------------------------------------------------------------------------------------------------------

BEGINNINGS = [
    (samplers.Heun, {"churn": 5.0}),
    (samplers.Restart, {"low": 0.3, "high": 2.0}),
    (samplers.PredictorCorrector, {"corrections": 2}),
    (samplers.DDPM, {}),
    (samplers.UCGM, {"rho_s": "auto"}),
    (samplers.ERSDE, {}),
]


@pytest.mark.parametrize(("cls", "settings"), BEGINNINGS)
def test_image_to_image_uses_every_entry_that_is_left(cls: Any, settings: dict[str, Any]) -> None:
    ours = cls(**SD, grid="karras", settings=settings)
    ours.set_timesteps(10)
    for start in (0, 4 * ours.order, 7 * ours.order):
        ours.set_timesteps(10)
        ours.set_begin_index(start)
        seen = drive(ours, start=start)
        assert ours._state.done and bool(seen.isfinite().all())


def test_rises_of_a_scheduler_take_the_noise_of_its_generators() -> None:
    ours = samplers.Restart(**SD, grid="karras", settings={"low": 0.3, "high": 2.0})
    ends = []
    for seeds in ((1, 2), (1, 3)):
        ours.set_timesteps(10)
        generators, x = [torch.Generator().manual_seed(s) for s in seeds], PICTURES
        for t in ours.timesteps:
            x = ours.step(network(x, t), t, x, generator=generators, return_dict=False)[0]
        ends.append(x)
    assert torch.equal(ends[0][0], ends[1][0]) and not torch.equal(ends[0][1], ends[1][1])


@pytest.mark.parametrize("case_name", ["StableDiffusionImg2ImgPipeline", "FluxPipeline"])
@pytest.mark.parametrize(("cls", "settings"), BEGINNINGS[:3])
def test_runs_of_more_legs_than_steps_in_pipelines(cls: Any, settings: dict[str, Any], case_name: str) -> None:
    case = tiny.CASES[case_name]()
    case.pipe.scheduler = cls.from_config(case.pipe.scheduler.config, grid="karras", settings=settings)
    picture = tiny.run(case, 8)
    assert case.pipe.scheduler._state.done and bool(picture.isfinite().all())


# -- a target known by its log density ---------------------------------------------------------------------------------


def log_density(x: Tensor) -> Tensor:
    return toy.g3().log_density(x, 1.0, 0.0) + 5.0  # up to a constant


def score_error(make: Callable[[int, int], Any], rho: float, draws: int) -> float:
    """Root mean square error of the score in units of 1 / rho, over 64 rows and sets of draws."""
    world, generator, errors = toy.g3(), torch.Generator().manual_seed(0), []
    x = world.sample(64, generator) + rho * torch.randn(64, 2, generator=generator, dtype=torch.float64)
    level = Level(0.0, 1.0, rho)
    for seed in range(1 if make is alone else 16):  # rows that share their draws share their errors
        errors.append(make(draws, seed)(x, level).denoised - world.denoised(x, 1.0, rho))
    return float(torch.stack(errors).square().mean().sqrt()) / rho


def alone(draws: int, seed: int) -> SampledDenoiser:
    return SampledDenoiser(log_density, PATHS["ve"], SeededNoise([64 * seed + i for i in range(64)]), draws)


def together(draws: int, seed: int) -> EnsembleDenoiser:
    return EnsembleDenoiser(log_density, PATHS["ve"], seed, draws)


@pytest.mark.parametrize(("make", "rho"), [(alone, 0.3), (alone, 1.0), (together, 1.0), (together, 3.0)])
def test_sampled_scores_get_better_with_the_root_of_the_draws(make: Any, rho: float) -> None:
    errors = [score_error(make, rho, draws) for draws in (400, 1600, 6400)]
    assert math.log(errors[0] / errors[2], 16) == pytest.approx(0.5, abs=0.15), errors


def test_sharing_draws_helps_at_large_noise_and_own_draws_at_small() -> None:
    assert score_error(together, 10.0, 1600) < score_error(alone, 10.0, 1600) / 4
    assert score_error(alone, 0.1, 1600) < score_error(together, 0.1, 1600)


def test_effective_sample_sizes() -> None:
    seeds = SeededNoise(range(4))
    x = torch.zeros(4, 2, dtype=torch.float64)

    def sizes(rho: float) -> Tensor:
        return SampledDenoiser(log_density, PATHS["ve"], seeds, 500).estimate(x, Level(0.0, 1.0, rho)).effective

    assert bool((sizes(1e-4) > 499).all()) and bool((sizes(30.0) < 10).all())
    assert bool((sizes(1.0) >= 1).all()) and sizes(1.0).shape == (4,)


def test_draws_belong_to_the_row() -> None:
    level, x = Level(0.0, 0.8, 0.6), SEEDS.initial((2,), dtype=torch.float64)
    whole = SampledDenoiser(log_density, PATHS["vp"], SEEDS, 50)
    both = whole(x, level).denoised
    for row, seed in enumerate(SEEDS.seeds):
        one = SampledDenoiser(log_density, PATHS["vp"], SeededNoise([seed]), 50)
        assert far(one(x[row : row + 1], level).denoised[0], both[row]) < 1e-14
    assert torch.equal(whole(x, level).denoised, both)  # no state
    with pytest.raises(UsageError, match="3 seeds for 2 rows"):
        whole(x[:2], level)
    for denoiser in (whole, EnsembleDenoiser(log_density, PATHS["flow"])):
        with pytest.raises(UsageError, match="infinite at pure noise"):
            denoiser(x, Level(1000.0, 0.0, 1.0))


def test_shapes_of_pictures_and_a_lone_row() -> None:
    def normal(x: Tensor) -> Tensor:
        return -(x - 0.7).flatten(1).square().sum(1) / (2 * 0.3)

    level, world = Level(0.0, 0.9, 0.4), Line()
    x = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = level.alpha * world.mean + math.sqrt(world.spread(level)) * x
    for denoiser in (
        SampledDenoiser(normal, PATHS["vp"], SeededNoise(range(5)), 20_000),
        EnsembleDenoiser(normal, PATHS["vp"], draws=20_000, pilot=500),
    ):
        p = denoiser(x, level)
        assert p.denoised.shape == x.shape
        assert far(p.denoised, world.denoised(x, 0.9, 0.4)) < 0.1
    assert EnsembleDenoiser(normal, PATHS["vp"], pilot=1)(x[:1], level).denoised.isfinite().all()


def test_a_run_from_the_log_density_alone_finds_the_target() -> None:
    world, schedule, count = toy.g3(), VarianceExploding(0.02, 10.0), 300
    x = 10 * SeededNoise(range(count)).initial((2,), dtype=torch.float64)
    denoiser = EnsembleDenoiser(log_density, schedule, draws=1000, pilot=100)
    end = sample(denoiser, x, sampler="heun", grid="karras", steps=12)
    truth = world.sample(count, torch.Generator().manual_seed(1))
    floor = sliced_distance(world.sample(count, torch.Generator().manual_seed(2)), truth)
    assert sliced_distance(end, truth) < 2 * floor
