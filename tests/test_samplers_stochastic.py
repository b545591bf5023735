"""Samplers that take noise, and those that go back up: identities, exact moments, diffusers' own steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
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
from pilotage.samplers import (
    EnsembleDenoiser,
    SampledDenoiser,
    SeededNoise,
    iterate,
    make_grid,
    make_sampler,
    sample,
    sde_dpmpp_2s,
)
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
    nothing, row 1 the start, row 2 + i the noise of evaluation i."""

    def __init__(self, sampler: Sampler, levels: tuple[Level, ...], path: str = "vp", world: Line | None = None):
        self.world = world or Line()
        denoiser = ExactDenoiser(self.world, PATHS[path])
        state = sampler.init(torch.empty(0), levels, denoiser.schedule)
        calls = sum(len(leg.points) for leg in state.legs)
        unit = torch.eye(calls + 2, dtype=torch.float64)[:, :, None]
        state, self.start, self.seen = replace(state, x=unit[:, 1]), levels[0], []
        for call in range(calls):
            noise = unit[:, 2 + call] if sampler.wants_noise(state) else None
            prediction = denoiser(state.x, state.level)
            if state.stage == 0:
                self.seen.append(prediction.denoised)
            state = sampler.tell(state, prediction, noise)
        assert state.done
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


TWO_STAGES = ("dpm2-ancestral", "dpmpp-2s-ancestral", "sde-dpmpp-2s")
WEAK = [
    ("ddpm", {}, 1),
    ("ddpm", {"variance": "large"}, 1),
    ("sde-dpmpp-1", {"eta": 1.0}, 1),
    ("er-sde", {"order": 1}, 1),
    ("er-sde", {"order": 1, "phi": "sde"}, 1),
    ("er-sde", {"order": 2}, 2),
    ("er-sde", {"order": 2, "phi": "sde"}, 2),
    ("tcd", {"gamma": 0.0}, 1),
    *((name, {"eta": eta}, 2) for name in TWO_STAGES for eta in (0.5, 1.0)),
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


@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_the_noises_of_a_step_are_of_one_path(shared: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another correlation DPM++ SDE is of weak order 1."""
    monkeypatch.setattr(sde_dpmpp_2s, "correlation", lambda leg: shared)
    errors = []
    for n in (80, 160, 320):
        levels = smooth_grid("vp", n)
        moments = Moments(make_sampler("sde-dpmpp-2s"), levels)
        errors.append(abs(moments.of(moments.x)[1] / Line().spread(levels[-1]) - 1))
    assert slope(errors[1], errors[2]) == pytest.approx(1, abs=0.12) and errors[-1] > 5e-3, errors


@pytest.mark.parametrize("name", TWO_STAGES)
def test_means_of_two_stages_are_right_on_any_grid(name: str) -> None:
    for n in (2, 5):
        levels = smooth_grid("vp", n)
        moments = Moments(make_sampler(name, eta=0.7), levels)
        assert moments.of(moments.x)[0] == pytest.approx(levels[-1].alpha * 0.7, abs=1e-13)


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


# -- ancestral steps of two stages -------------------------------------------------------------------------------------


def ancestral_rhos(rho: float, goal: float, eta: float) -> tuple[float, float]:
    """(down, up) as k-diffusion has them."""
    up = min(goal, eta * math.sqrt(goal**2 * (rho**2 - goal**2) / rho**2))
    return math.sqrt(goal**2 - up**2), up


@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("name", TWO_STAGES)
def test_two_stages_are_the_programs_of_k_diffusion(name: str, eta: float) -> None:
    """Their arithmetic by hand, with the noise of the loop: a stage inside a step draws its own."""
    world, schedule = toy.g3(), VarianceExploding(0.02, 20.0)
    levels = make_grid("karras", schedule, 7)
    x = end = 20 * X

    def denoised(x: Tensor, rho: float) -> Tensor:
        return world.denoised(x, 1.0, rho)

    for i, (rho, goal) in enumerate(pairwise([level.sigma for level in levels])):
        clean = denoised(end, rho)
        if not goal:
            end = clean
            continue
        fresh, (down, up) = SEEDS.draw("step", i, x), ancestral_rhos(rho, goal, eta)
        if name == "sde-dpmpp-2s":
            middle = math.sqrt(rho * goal)
            inner_down, inner_up = ancestral_rhos(rho, middle, eta)
            inner = SEEDS.draw("stage 0", i, x)
            at = inner_down / rho * end + (1 - inner_down / rho) * clean + inner_up * inner
            end = down / rho * end + (1 - down / rho) * denoised(at, middle)
            path = inner * math.sqrt(rho - middle), fresh * math.sqrt(middle - goal)  # W over both parts of the step
            end = end + up * (path[0] + path[1]) / math.sqrt(rho - goal)
            continue
        middle, slope_ = math.sqrt(rho * down), (end - clean) / rho
        if name == "dpm2-ancestral":
            at = end + slope_ * (middle - rho)
            end = end + (at - denoised(at, middle)) / middle * (down - rho)
        else:
            at = middle / rho * end + (1 - middle / rho) * clean
            end = down / rho * end + (1 - down / rho) * denoised(at, middle)
        end = end + up * fresh
    found = sample(ExactDenoiser(world, schedule), x, sampler=f"{name}:eta={eta}", grid=levels, noise=SEEDS)
    assert far(found, end) < 1e-11


@pytest.mark.parametrize("name", TWO_STAGES)
def test_two_stages_from_pure_noise(name: str) -> None:
    """x counts halfway at most; DPM2 in rho would not be finite there, and takes the weights of DPM++."""
    schedule = RectifiedFlow()
    levels = make_grid("flow", schedule, 6)
    sampler, goal = make_sampler(name), levels[1]
    legs = sampler.plan(levels, schedule)
    assert levels[0].alpha == 0 and [len(leg.points) for leg in legs] == [2] * 5 + [1]
    middle = legs[0].points[1]
    first, last = ((stage.keep, *stage.weights, stage.fresh) for stage in legs[0].weights)
    assert last == pytest.approx((0.0, 0.0, goal.alpha, goal.sigma), abs=1e-15)
    if name == "sde-dpmpp-2s":
        assert middle.rho == pytest.approx(2 * goal.rho, rel=1e-12) and sde_dpmpp_2s.correlation(legs[0]) == 1
        assert first == pytest.approx((0.0, middle.alpha, middle.sigma))
    else:
        assert middle == goal and first == pytest.approx((goal.sigma, goal.alpha, 0.0))
    if name == "dpmpp-2s-ancestral":  # what it is next to pure noise
        ends = [
            run(sampler, (start, *levels[1:]), X, ExactDenoiser(toy.g3(), schedule))
            for start in (levels[0], Level(1000.0, 1e-7, 1.0))
        ]
        assert far(*ends) < 1e-5


@pytest.mark.parametrize("name", [*TWO_STAGES, "dpm2"])
def test_settings_of_two_stages(name: str) -> None:
    levels, schedule = make_grid("karras", stable_diffusion_schedule(), 5), stable_diffusion_schedule()
    solver = "dpm2" if "dpm2" in name else "dpmpp-2s"
    if name != "dpm2":
        assert make_sampler(name, eta=0.0).plan(levels, schedule) == make_sampler(solver).plan(levels, schedule)
        assert not make_sampler(name, eta=0.0).stochastic and make_sampler(name).stochastic
        for eta in (-0.1, 1.1):
            with pytest.raises(UsageError, match="eta must lie between 0, the ODE, and 1"):
                make_sampler(name, eta=eta)
    with pytest.raises(UsageError, match="pass the schedule"):
        make_sampler(name).plan(levels)


def test_an_inner_evaluation_at_the_end_of_the_step() -> None:
    """r = 1: both noises are one."""
    schedule = stable_diffusion_schedule()
    legs = make_sampler("sde-dpmpp-2s:r=1").plan(make_grid("karras", schedule, 5), schedule)[:-1]
    assert [sde_dpmpp_2s.correlation(leg) for leg in legs] == pytest.approx([1.0] * 4, abs=1e-12)
    with pytest.raises(UsageError, match="share of the step"):
        make_sampler("sde-dpmpp-2s:r=0")


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
    assert far(ours, raw if last == "raw" else x) < 1e-12


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
    "dpmpp-2s-ancestral",
    "sde-dpmpp-2s:r=0.3",
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


@pytest.mark.parametrize("original", [50, 20, 64])
@pytest.mark.parametrize(
    ("stock", "ours"), [(D.LCMScheduler, samplers.LCM), (D.TCDScheduler, samplers.TCD)], ids=["lcm", "tcd"]
)
def test_a_students_times_are_those_of_its_config(stock: Any, ours: Any, original: int, tmp_path: Path) -> None:
    theirs = stock(**SD, original_inference_steps=original)
    theirs.save_pretrained(tmp_path)
    made = [ours.from_config(theirs.config), ours.from_pretrained(tmp_path)]
    made.append(ours(**SD, original_inference_steps=original))
    made.append(ours.from_config(samplers.DPMPP2M.from_config(theirs.config).config))  # by way of another sampler
    for steps in (1, 3, 4, 7, 8, 13, original):
        theirs.set_timesteps(steps)
        for mine in made:
            mine.set_timesteps(steps)
            assert mine.timesteps.tolist() == theirs.timesteps.tolist(), steps
    assert stock.from_config(made[0].config).config.original_inference_steps == original
    with pytest.raises(UsageError, match=f"takes 1 to {original} steps, not {original + 1}"):
        made[0].set_timesteps(original + 1)
    with pytest.raises(UsageError, match="original_inference_steps=1001 of a model with 1000 times"):
        distilled_levels(stable_diffusion_schedule(), 4, 1001)


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


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [2, 6, 20])
def test_dpmpp_sde(steps: int, prediction: str) -> None:
    """With the noise of our scheduler in place of stock's Brownian tree."""
    settings = dict(SD, timestep_spacing="trailing", prediction_type=prediction)
    stock, ours = D.DPMSolverSDEScheduler(**settings), samplers.SDEDPMPP2S(**settings)
    for s in (stock, ours):
        s.set_timesteps(steps)
    assert torch.allclose(ours.timesteps.double(), stock.timesteps.double(), atol=1e-3)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    path: list[tuple[float, Tensor]] = []  # where W was asked for, and its move there from the step's start

    def moves(rho: float, to: float) -> Tensor:
        fresh = torch.stack([torch.randn(PICTURES.shape[1:], generator=g) for g in generators])
        middle, before = path.pop() if path else (rho, torch.zeros_like(fresh))
        move = before + fresh * math.sqrt(middle - to)
        if middle == rho:
            path.append((float(to), move))
        return move / math.sqrt(rho - to)

    stock.noise_sampler = moves
    x = PICTURES * math.sqrt(float(stock.sigmas[0]) ** 2 + 1)
    for t in stock.timesteps:
        x = stock.step(network(stock.scale_model_input(x, t), float(t)), t, x, return_dict=False)[0]
    assert not path and relative(drive(ours), x) < 2e-6


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
]


def main_and_restarts(rhos: list[float], settings: dict[str, float]) -> list[tuple[float, float]]:
    """(from, to) of every Heun step of Algorithm 1 of Restart, or of churn, by hand; rhos end with 0."""
    pairs: list[tuple[float, float]] = []
    if "churn" in settings:
        grow = 1 + min(settings["churn"] / (len(rhos) - 1), math.sqrt(2) - 1)
        inside = [i > 0 and settings["low"] <= rho <= settings["high"] for i, rho in enumerate(rhos)]
        return [(a * grow if inside[i] else a, b) for i, (a, b) in enumerate(pairwise(rhos))]
    low, high = settings["low"], settings["high"]
    bottom = min((rho for rho in rhos[1:-1] if rho < high), key=lambda rho: abs(rho - low))
    down = [*(np.linspace(high ** (1 / 7), bottom ** (1 / 7), 3) ** 7).tolist()[:-1], bottom]
    for a, b in pairwise(rhos):
        pairs += [(a, b), *(2 * list(pairwise(down)) if b == bottom else ())]
    return pairs


@pytest.mark.parametrize("steps_left_out", [0, 3, 4, 7, 8])
@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (samplers.Heun, {"churn": 5.0, "low": 0.1, "high": 8.0, "noise": 1.02}),
        (samplers.Restart, {"low": 0.3, "high": 2.0, "noise": 1.02}),
    ],
)
def test_runs_that_begin_inside_the_list_and_go_back_up(cls: Any, settings: Any, steps_left_out: int) -> None:
    """Every value against Heun by hand on the exact mixture, in u = x / alpha, with the same noise; some begin in the
    middle of a restart, or at a churned level."""
    ours = cls(**SD, grid="karras", settings=settings)
    ours.set_timesteps(10)
    schedule, world = ours.schedule, toy.g3()
    rhos = [level.rho for level in make_grid("karras", schedule, 10)]
    pairs = main_and_restarts(rhos, settings)
    assert len(ours.legs) == len(pairs) and len(ours.timesteps) == 2 * len(pairs) - 1
    rises_left = sum(a > b for (_, b), (a, _) in pairwise(pairs[steps_left_out:]))
    assert rises_left >= 1 or steps_left_out > 4

    def slope_(u: Tensor, rho: float) -> Tensor:
        return (u - world.denoised(u, 1.0, rho)) / rho

    generators, end = [torch.Generator().manual_seed(s) for s in (1, 2)], pairs[steps_left_out][0]
    x0, noise = torch.tensor([[0.5, -0.2], [-1.0, 1.4]]).double(), torch.randn(2, 2, generator=generators[0]).double()
    generators[0].manual_seed(1)
    u, drawn = x0 + end * noise, 0
    for rho, goal in pairs[steps_left_out:]:
        if rho > end:
            xi = torch.stack([torch.randn(2, generator=g, dtype=torch.float64) for g in generators])
            u, drawn = u + settings["noise"] * math.sqrt(rho**2 - end**2) * xi, drawn + 1
        d = slope_(u, rho)
        ahead = u + (goal - rho) * d
        u, end = ahead if goal == 0 else u + (goal - rho) * (d + slope_(ahead, goal)) / 2, goal
    assert drawn == rises_left

    start = 2 * steps_left_out
    ours.set_begin_index(start)
    x = ours.add_noise(x0, noise, ours.timesteps[start : start + 1].expand(2))
    again = [torch.Generator().manual_seed(s) for s in (1, 2)]
    for t in ours.timesteps[start:]:
        level = schedule.level(float(t))
        clean = world.denoised(x, level.alpha, level.sigma)
        x = ours.step((x - level.alpha * clean) / level.sigma, t, x, generator=again, return_dict=False)[0]
    assert ours._state.done and far(x, u) < 1e-5, far(x, u)


@pytest.mark.parametrize(
    ("cls", "settings", "entries"),
    [
        (samplers.PredictorCorrector, {"corrections": 2}, 3),
        (samplers.DDPM, {}, 1),
        (samplers.UCGM, {"rho_s": "auto"}, 1),
        (samplers.ERSDE, {}, 1),
        (samplers.SDEDPMPP2S, {}, 2),
        (samplers.DPM2Ancestral, {}, 2),
    ],
)
def test_a_run_that_begins_inside_the_list_is_the_run_on_the_levels_left(cls: Any, settings: Any, entries: int) -> None:
    ours, alone = (cls(**SD, grid="karras", settings=settings) for _ in range(2))
    for left_out in (0, 4, 7):
        ours.set_timesteps(10)
        ours.set_begin_index(entries * left_out)
        found = drive(ours, start=entries * left_out)
        alone._use(ours.levels[left_out:], "cpu")
        assert ours._state.done and torch.equal(found, drive(alone)) and bool(found.isfinite().all())


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
@pytest.mark.parametrize(("cls", "settings"), BEGINNINGS)
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
