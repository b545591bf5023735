"""Samplers as methods: identities, both ends of a run, per-picture noise, gradients, resuming, the law of CFG++."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from exact import PATHS, START, Line, level_of_lam, mixture, smooth_grid
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.samplers import SAMPLERS, SeededNoise, iterate, make_grid, make_sampler, sample
from pilotage.samplers.denoiser import ExactDenoiser, NetworkDenoiser
from pilotage.samplers.prediction import FLOW_PREDICTION, V_PREDICTION, Prediction
from pilotage.samplers.sampler import Sampler, State
from pilotage.samplers.schedule import Level, LinearVP, RectifiedFlow, stable_diffusion_schedule

SEEDS = SeededNoise([3, 1, 4])
X = SEEDS.initial((2,), dtype=torch.float64)
# Runs of more legs than the grid has steps; see test_samplers_stochastic.
OWN_LEGS = ("restart", "predictor-corrector", "langevin")
ONE_LEG_A_STEP = [name for name in SAMPLERS if name not in OWN_LEGS]


def tell_all(sampler: Sampler, levels: tuple[Level, ...], x: Tensor, denoiser: Any, seeds: SeededNoise) -> Tensor:
    state = sampler.init(x, levels, denoiser.schedule)
    while not state.done:
        noise = seeds.draw("step", state.step, state.x) if sampler.wants_noise(state) else None
        state = sampler.tell(state, denoiser(state.x, state.level), noise)
    return state.x


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# -- identities --------------------------------------------------------------------------------------------------------


def test_euler_ddim_and_their_ancestral_forms() -> None:
    levels, denoiser = smooth_grid("vp", 9), mixture("vp")

    def end(name: str, **settings: float) -> Tensor:
        return tell_all(make_sampler(name, **settings), levels, X, denoiser, SEEDS)

    assert far(end("ddim"), end("euler")) == 0
    assert far(end("euler"), end("euler-ancestral", eta=0.0)) == 0
    assert far(end("ddim", eta=1.0), end("euler-ancestral")) == 0
    assert far(end("ddim", eta=0.6), end("euler-ancestral", eta=0.6)) == 0
    assert far(end("dpmpp-2m"), end("sde-dpmpp-2m", eta=0.0)) == 0
    assert far(end("ddim", eta=1.0), end("ddim")) > 0.1


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("path", PATHS)
def test_the_first_step_of_2m_is_of_the_first_order_family(path: str, eta: float) -> None:
    levels = smooth_grid(path, 5)[:2]  # one step: no history
    denoiser, x = mixture(path), X * levels[0].sigma
    one = tell_all(make_sampler("sde-dpmpp-2m", eta=eta), levels, x, denoiser, SEEDS)
    assert far(one, tell_all(make_sampler("ddim", eta=eta), levels, x, denoiser, SEEDS)) < 1e-14 * levels[0].sigma


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_euler_ancestral_is_that_of_k_diffusion(eta: float) -> None:
    levels, denoiser = smooth_grid("ve", 7), mixture("ve")
    x = 12 * X
    expected = x
    for i, (a, b) in enumerate(zip(levels, levels[1:])):
        up = min(b.rho, eta * (b.rho**2 * (a.rho**2 - b.rho**2) / a.rho**2) ** 0.5)
        down = (b.rho**2 - up**2) ** 0.5
        d = (expected - denoiser(expected, a).denoised) / a.rho
        expected = expected + d * (down - a.rho) + SEEDS.draw("step", i, x) * up
    assert far(tell_all(make_sampler("euler-ancestral", eta=eta), levels, x, denoiser, SEEDS), expected) < 1e-13


def test_heun_is_algorithm_1() -> None:
    levels, denoiser = (*smooth_grid("ve", 6), Level(0.0, 1.0, 0.0)), mixture("ve")
    expected = 12 * X
    for a, b in zip(levels, levels[1:]):
        d = (expected - denoiser(expected, a).denoised) / a.sigma
        ahead = expected + (b.sigma - a.sigma) * d
        if b.sigma > 0:
            d2 = (ahead - denoiser(ahead, b).denoised) / b.sigma
            ahead = expected + (b.sigma - a.sigma) * (d + d2) / 2
        expected = ahead
    assert far(tell_all(make_sampler("heun"), levels, 12 * X, denoiser, SEEDS), expected) < 1e-12


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_2m_is_its_formula(eta: float) -> None:
    levels, denoiser = smooth_grid("flow", 6), mixture("flow")
    expected, before = X, None
    for i, (a, b) in enumerate(zip(levels, levels[1:])):
        now, h = denoiser(expected, a).denoised, b.lam - a.lam
        slope = (now - before) / ((a.lam - levels[i - 1].lam) / h) if before is not None else 0 * now
        expected = (
            b.sigma / a.sigma * math.exp(-eta * h) * expected
            - b.alpha * math.expm1(-(1 + eta) * h) * (now + slope / 2)
            + b.sigma * math.sqrt(-math.expm1(-2 * eta * h)) * SEEDS.draw("step", i, X)
        )
        before = now
    assert far(tell_all(make_sampler("sde-dpmpp-2m", eta=eta), levels, X, denoiser, SEEDS), expected) < 1e-13


# -- ends of a run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_returns_denoised(name: str, path: str) -> None:
    levels, denoiser, sampler = (*smooth_grid(path, 4), Level(0.0, 1.0, 0.0)), mixture(path), make_sampler(name)
    state = sampler.init(X * levels[0].sigma, levels, PATHS[path])
    calls = 0
    while not state.done:
        prediction = denoiser(state.x, state.level)
        wants = sampler.wants_noise(state)
        assert not (wants and state.goal.sigma == 0)
        state = sampler.tell(state, prediction, SEEDS.draw("step", state.step, X) if wants else None)
        calls += 1
    assert torch.equal(state.x, prediction.denoised)
    assert name in OWN_LEGS or calls == 4 * sampler.stages + 1


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", ONE_LEG_A_STEP)
def test_starting_at_pure_noise_is_finite_and_the_limit_of_almost_pure_noise(name: str, steps: int) -> None:
    denoiser = mixture("flow")
    pure = make_grid("flow", RectifiedFlow(), steps)
    assert pure[0].alpha == 0
    almost = (Level(1000.0, 1e-7, 1 - 1e-7), *pure[1:])
    ends = [tell_all(make_sampler(name), levels, X, denoiser, SEEDS) for levels in (pure, almost)]
    assert bool(ends[0].isfinite().all())
    if steps == 1 or make_sampler(name).order == 1:  # higher orders look back at, or average over, an infinite step
        assert far(*ends) < 1e-4


def test_heun_from_pure_noise_is_of_second_order() -> None:
    denoiser, x = mixture("flow"), torch.tensor([[0.7, -0.4]], dtype=torch.float64)

    def end(steps: int) -> Tensor:
        w = torch.linspace(0, 1, steps + 1, dtype=torch.float64) * 0.6  # from t = 1 to 0.4 in even steps
        levels = tuple(Level(0.0, a, 1 - a) for a in w.tolist())
        return tell_all(make_sampler("heun"), levels, x, denoiser, SEEDS)

    exact = end(1024)
    errors = [far(end(n), exact) for n in (32, 64, 128)]
    assert all(1.75 < math.log2(a / b) < 2.6 for a, b in zip(errors, errors[1:])), errors


def test_2m_does_not_look_back_at_pure_noise() -> None:
    plan = make_sampler("dpmpp-2m").plan(make_grid("flow", RectifiedFlow(), 5))
    assert [len(leg.weights.past) for leg in plan] == [1, 1, 2, 2, 1]
    assert all(math.isfinite(v) for leg in plan for v in (leg.weights.keep, *leg.weights.past))


@pytest.mark.parametrize("name", ONE_LEG_A_STEP)
def test_one_step(name: str) -> None:
    for schedule in (stable_diffusion_schedule(), RectifiedFlow(), LinearVP()):
        denoiser = ExactDenoiser(Line(), schedule)
        levels = make_grid("trailing", schedule, 1)
        x = sample(denoiser, X, sampler=name, grid=levels, noise=SEEDS)
        assert torch.equal(x, denoiser(X, levels[0]).denoised)


# -- the loop ----------------------------------------------------------------------------------------------------------

LOOP: dict[str, Any] = dict(grid="karras", steps=6, noise=SEEDS)


def vp() -> ExactDenoiser:
    return ExactDenoiser(mixture("vp").world, stable_diffusion_schedule())


@pytest.mark.parametrize("name", SAMPLERS)
def test_iterate_yields_each_step_and_sample_returns_the_last(name: str) -> None:
    steps = list(iterate(vp(), X, sampler=name, **LOOP))
    count = len(steps)
    assert name in OWN_LEGS or count == 6
    assert [s.index for s in steps] == list(range(count))
    assert [s.state.step for s in steps] == list(range(1, count + 1))
    assert all(s.state.stage == 0 for s in steps)
    assert torch.equal(sample(vp(), X, sampler=name, **LOOP), steps[-1].x)
    levels = steps[0].state.levels
    assert [s.prediction.level for s in steps] == list(levels[:-1])  # the first evaluation of each step
    assert torch.equal(steps[0].prediction.x, X)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_does_not_know_its_batch(name: str) -> None:
    together = sample(vp(), X, sampler=name, **LOOP)
    for row, seed in enumerate(SEEDS.seeds):
        alone = sample(vp(), X[row : row + 1], sampler=name, **{**LOOP, "noise": SeededNoise([seed])})
        assert far(together[row], alone[0]) < 1e-13
    reordered = sample(vp(), X.flip(0), sampler=name, **{**LOOP, "noise": SeededNoise(SEEDS.seeds[::-1])})
    assert far(together, reordered.flip(0)) < 1e-13


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_continues_from_any_state(name: str) -> None:
    full = list(iterate(vp(), X, sampler=name, **LOOP))
    for stop in (0, 2, 4):
        rest = list(iterate(vp(), X, sampler=name, **LOOP, state=full[stop].state))
        assert [s.index for s in rest] == [s.index for s in full[stop + 1 :]]
        assert torch.equal(rest[-1].x, full[-1].x)


@pytest.mark.parametrize("name", SAMPLERS)
def test_states_are_values(name: str) -> None:
    # telling twice from one state gives the same twice, and leaves it alone
    sampler, levels, denoiser = make_sampler(name), make_grid("karras", stable_diffusion_schedule(), 4), vp()
    state = sampler.init(X, levels, denoiser.schedule)
    for _ in range(3):
        before, prediction = state.x.clone(), denoiser(state.x, state.level)
        noise = SEEDS.draw("step", state.step, X) if sampler.wants_noise(state) else None
        a, b = (sampler.tell(state, prediction, noise) for _ in range(2))
        assert torch.equal(a.x, b.x) and torch.equal(state.x, before)
        state = a
    assert isinstance(state, State)


@pytest.mark.parametrize("name", SAMPLERS)
def test_gradients_through_a_run(name: str) -> None:
    world = Line()
    denoiser = ExactDenoiser(world, stable_diffusion_schedule())
    mean = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = X[:1].clone().requires_grad_()
    settings = {**LOOP, "noise": SeededNoise([3]), "sampler": name}

    def loss(start: Tensor, m: Any) -> Tensor:
        world.mean = m
        return (sample(denoiser, start, **settings) ** 2).sum()

    by_x, by_mean = torch.autograd.grad(loss(x, mean), (x, mean))
    h, direction = 1e-6, torch.tensor([[0.6, -0.8]], dtype=torch.float64)
    start = x.detach()
    finite_x = (loss(start + h * direction, 0.7) - loss(start - h * direction, 0.7)) / (2 * h)
    finite_mean = (loss(start, 0.7 + h) - loss(start, 0.7 - h)) / (2 * h)
    along = float((by_x * direction).sum())
    assert along == pytest.approx(float(finite_x), rel=1e-6, abs=1e-9)  # rounding of the quotient
    assert float(by_mean) == pytest.approx(float(finite_mean), rel=1e-6)


def test_a_stochastic_sampler_wants_seeds() -> None:
    for name in ("euler-ancestral", "sde-dpmpp-2m"):
        with pytest.raises(UsageError, match="pass noise=SeededNoise"):
            next(iterate(vp(), X, sampler=name, steps=3))
    with pytest.raises(UsageError, match="2 seeds for 3 rows"):
        sample(vp(), X, sampler="euler-ancestral", steps=3, noise=SeededNoise([1, 2]))
    assert make_sampler("ddim").stochastic is False
    assert make_sampler("ddim", eta=0.1).stochastic is True
    with pytest.raises(UsageError, match="did you mean euler"):
        sample(vp(), X, sampler="eulr", steps=3)


def test_a_network_is_a_denoiser() -> None:
    class Network(torch.nn.Module):
        def forward(self, x: Tensor, time: Tensor, shift: float = 0.0) -> Any:
            assert time.shape == (3,) and time.dtype == torch.float32
            return (x.float() * 0.1 + time[:, None] / 1000 + shift,)

    denoiser = NetworkDenoiser(Network(), stable_diffusion_schedule(), "v_prediction")
    level = denoiser.schedule.level(500)
    p = denoiser(X.half(), level, {"shift": 1.0})
    assert p.kind is V_PREDICTION and p.x.dtype == torch.float32
    assert torch.allclose(p.native, X.half().float() * 0.1 + 1.5)


# -- the law for inconsistent predictions ------------------------------------------------------------------------------


class Shifted:
    """Two denoisers that differ: data shifted by a constant."""

    def __init__(self, path: str):
        self.plain, self.path = mixture(path), path

    def unconditional(self, x: Tensor, level: Level) -> Prediction:
        return self.plain(x, level)

    def guided(self, x: Tensor, level: Level, w: float) -> Prediction:
        n = self.plain(x, level)
        moved = self.plain(x - level.alpha, level).denoised + 1
        return n.with_denoised(n.denoised + w * (moved - n.denoised))


def cfgpp(sampler: Sampler, path: str, levels: tuple[Level, ...], w: float) -> list[Tensor]:
    model, out = Shifted(path), []
    state = sampler.init(torch.tensor([START[path]], dtype=torch.float64), levels, PATHS[path])
    while not state.done:
        n, g = model.unconditional(state.x, state.level), model.guided(state.x, state.level, w)
        noise = SEEDS.draw("step", state.step, X)[:1] if sampler.wants_noise(state) else None
        state = sampler.tell(state, g.renoised_with(n), noise)
        out.append(state.x)
    return out


def shifted_levels(path: str) -> tuple[Level, ...]:
    return (*smooth_grid(path, 5), Level(0.0, 1.0, 0.0))


@pytest.mark.parametrize("path", PATHS)
def test_cfgpp_on_first_order_samplers_is_its_formula(path: str) -> None:
    levels, model, w = shifted_levels(path), Shifted(path), 0.6
    for name, eta in (("ddim", 0.0), ("euler", 0.0), ("euler-ancestral", 0.7)):
        x = torch.tensor([START[path]], dtype=torch.float64)
        for i, (a, b) in enumerate(zip(levels, levels[1:])):
            n, g = model.unconditional(x, a), model.guided(x, a, w)
            c = eta * math.sqrt(1 - (b.rho / a.rho) ** 2) if b.sigma else 0.0
            noise = SEEDS.draw("step", i, X)[:1]
            x = b.alpha * g.denoised + b.sigma * (math.sqrt(1 - c * c) * n.noise + c * noise)
        sampler = make_sampler(name, **({"eta": eta} if eta else {}))
        assert far(cfgpp(sampler, path, levels, w)[-1], x) < 1e-12, name


@pytest.mark.parametrize("path", PATHS)
def test_cfgpp_on_2m_keeps_the_unconditional_history(path: str) -> None:
    levels, model, w = shifted_levels(path), Shifted(path), 0.6
    u = torch.tensor([START[path]], dtype=torch.float64) / levels[0].alpha
    before = None
    for i, (a, b) in enumerate(zip(levels, levels[1:])):
        n, g = (p.denoised for p in (model.unconditional(a.alpha * u, a), model.guided(a.alpha * u, a, w)))
        shrink = b.rho / a.rho
        last = 0.0
        if before is not None and b.sigma:
            r = (a.lam - levels[i - 1].lam) / (b.lam - a.lam)
            last = -math.expm1(-(b.lam - a.lam)) * (n - before) / (2 * r)
        u = g - shrink * n + shrink * u + last
        before = n
    assert far(cfgpp(make_sampler("dpmpp-2m"), path, levels, w)[-1], u) < 1e-12


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_cfgpp_is_cfg_with_a_scale_for_each_step(name: str, path: str) -> None:
    levels, model, w = shifted_levels(path), Shifted(path), 0.6
    sampler = make_sampler(name)
    state = sampler.init(torch.tensor([START[path]], dtype=torch.float64), levels, PATHS[path])
    while not state.done:
        omega = w / (1 - state.goal.rho / state.level.rho)
        state = sampler.tell(state, model.guided(state.x, state.level, omega))
    assert far(cfgpp(sampler, path, levels, w)[-1], state.x) < 1e-12


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n not in ("predictor-corrector", "langevin")])
def test_the_shift_stands_once_at_the_end_of_the_outer_step(name: str) -> None:
    path = "flow"
    levels, model, sampler = shifted_levels(path), Shifted(path), make_sampler(name)
    state = plain = sampler.init(torch.tensor([START[path]], dtype=torch.float64), levels, PATHS[path])
    for stage in range(sampler.stages):
        n, g = model.unconditional(state.x, state.level), model.guided(state.x, state.level, 0.6)
        noise = SEEDS.draw("step", 0, X)[:1] if sampler.wants_noise(state) else None
        plain, state = sampler.tell(state, n, noise), sampler.tell(state, g.renoised_with(n), noise)
        if stage < sampler.stages - 1:
            assert torch.equal(plain.x, state.x)  # inner stages run on the base
    assert far(state.x - plain.x, levels[1].alpha * (g.denoised - n.denoised)) < 1e-14
    assert all(torch.equal(a, b) for a, b in zip(state.history, plain.history, strict=True))
    # with the base as its own guidance the law changes nothing
    again = sampler.tell(replace(state, history=state.history), n.renoised_with(n), SEEDS.draw("step", 1, X)[:1])
    assert far(again.x, sampler.tell(state, n, SEEDS.draw("step", 1, X)[:1]).x) < 1e-14


def test_a_step_from_the_same_x_knows_which_end_it_is_at() -> None:
    levels = tuple(level_of_lam("vp", lam) for lam in (-1.0, 0.0, 1.0))
    state = make_sampler("heun").init(X, levels)
    assert (state.level, state.goal, state.done) == (levels[0], levels[1], False)
    p = Prediction(X, state.level, X, FLOW_PREDICTION)
    state = make_sampler("heun").tell(state, p)
    assert (state.level, state.goal, state.stage, state.start is X) == (levels[1], levels[1], 1, True)


# -- legs --------------------------------------------------------------------------------------------------------------


def test_a_leg_that_starts_higher_is_reached_by_fresh_noise() -> None:
    """The variance of exact Gaussian data is right at every leg's start."""
    schedule, line = RectifiedFlow(), Line()
    denoiser, many = ExactDenoiser(line, schedule), 40_000
    levels = make_grid("flow", schedule, 40)
    near = next(i for i, level in enumerate(levels) if level.rho < 0.5)
    sampler = make_sampler("euler")
    legs = (*sampler.plan(levels[: near + 1]), *sampler.plan((schedule.level_of_rho(1.0), *levels[near:])))
    x = torch.randn(many, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state, seeds = State(x, legs), torch.Generator().manual_seed(1)
    lifted = None
    while not state.done:
        wants, risen = sampler.wants_noise(state), state.step == near - 1
        assert wants == risen
        noise = torch.randn(many, 1, generator=seeds, dtype=torch.float64) if wants else None
        state = sampler.tell(state, denoiser(state.x, state.level), noise)
        if risen:
            assert state.level.rho == pytest.approx(1.0) and state.levels[near] == state.level
            lifted = float(state.x.var()), line.spread(state.level)
    assert lifted is not None and lifted[0] == pytest.approx(lifted[1], rel=0.05)  # 40 Euler steps, 40,000 draws


def test_settings_in_words() -> None:
    assert make_sampler("ddim:eta=0.5") == make_sampler("ddim", eta=0.5)
    with pytest.raises(UsageError, match="no setting 'etta': did you mean eta"):
        make_sampler("ddim:etta=1")
    with pytest.raises(UsageError, match="euler has no setting 'eta': it has none"):
        make_sampler("euler", eta=1)
    scheduler = stable_diffusion_schedule()
    assert make_grid("karras:p=5", scheduler, 6) == make_grid("karras", scheduler, 6, p=5)
    with pytest.raises(UsageError, match="the karras grid has no setting 'q': known: p"):
        make_grid("karras:q=5", scheduler, 6)
