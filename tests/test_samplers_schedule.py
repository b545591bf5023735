"""Schedules agree with the diffusers schedulers they are read from, and with their own derivatives and inverses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stock_schedulers import EXPLODING, FLOWS, MULTISTEP, SCALED, SD, STOCK, TABLES

from pilotage.errors import UsageError
from pilotage.samplers.schedule import (
    Between,
    CosineVP,
    DiscreteVP,
    Level,
    LinearVP,
    NoiseSchedule,
    RectifiedFlow,
    TrigFlow,
    VarianceExploding,
    flow_shift,
    from_scheduler,
    mu_of_tokens,
    shift_of_mu,
    stable_diffusion_schedule,
    stretch_to_terminal,
)


def zero_snr() -> NoiseSchedule:
    return from_scheduler(STOCK["ddim-zero-snr"]())


SCHEDULES: dict[str, Callable[[], NoiseSchedule]] = {
    "sd": stable_diffusion_schedule,
    "zero-snr": zero_snr,
    "linear-vp": LinearVP,
    "cosine": CosineVP,
    "edm": VarianceExploding,
    "flow": RectifiedFlow,
    "trig": TrigFlow,
}


@pytest.fixture(params=SCHEDULES, name="schedule")
def _schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return SCHEDULES[request.param]()


def inside(schedule: NoiseSchedule, count: int = 41) -> torch.Tensor:
    """Times strictly between the ends, none of them a node of a table."""
    share = torch.linspace(0.00337, 0.981, count, dtype=torch.float64)
    return schedule.t_min + share * (schedule.T - schedule.t_min)


# -- against diffusers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TABLES, *MULTISTEP, *SCALED])
def test_tables_hold_what_add_noise_does(name: str) -> None:
    scheduler = STOCK[name]()
    schedule = from_scheduler(scheduler)
    power = scheduler.alphas_cumprod.double()
    k = torch.arange(len(power))
    assert torch.allclose(schedule.alpha(k), power.sqrt(), atol=1e-7)
    assert torch.allclose(schedule.sigma(k), (1 - power).sqrt(), atol=1e-7)
    assert schedule.model_time(k).tolist() == k.tolist()
    assert len(power) - 1 == schedule.T
    if not hasattr(scheduler, "add_noise"):
        return
    # x_0 = 1 and noise = 1, one at a time: the weights that the scheduler itself uses
    scheduler.set_timesteps(10)
    times = scheduler.timesteps[:1]
    one, nothing = torch.ones(1, 1), torch.zeros(1, 1)
    weights = [float(scheduler.add_noise(a, b, times)) for a, b in ((one, nothing), (nothing, one))]
    rho = float(schedule.rho(times)) if weights[1] else 0.0
    assert weights[1] / weights[0] == pytest.approx(rho, rel=1e-4) if weights[0] else math.isinf(rho)


@pytest.mark.parametrize("name", FLOWS)
def test_flow_is_the_straight_path(name: str) -> None:
    scheduler = STOCK[name]()
    schedule = from_scheduler(scheduler)
    assert isinstance(schedule, RectifiedFlow)
    scheduler.set_timesteps(10)
    t = scheduler.sigmas[:-1].double()
    assert torch.equal(schedule.sigma(t), t)
    assert torch.equal(schedule.alpha(t), 1 - t)
    stages = 2 if name == "flow-heun" else 1  # its second stages are told the time of their step's end
    told = scheduler.timesteps[::stages].double()
    assert torch.allclose(schedule.model_time(t[::stages]), told, atol=1.0)  # some truncate to int


@pytest.mark.parametrize("name", EXPLODING)
def test_exploding_schedules_give_the_network_its_time(name: str) -> None:
    scheduler = STOCK[name]()
    schedule = from_scheduler(scheduler)
    scheduler.set_timesteps(10)
    if name == "score-sde-ve":
        scheduler.set_sigmas(10)
        scheduler.timesteps = scheduler.sigmas  # its pipeline hands the network sigma itself
    sigma = scheduler.sigmas[:10].double()
    assert torch.equal(schedule.alpha(sigma), torch.ones(10, dtype=torch.float64))
    assert torch.equal(schedule.sigma(sigma), sigma)
    assert torch.allclose(schedule.model_time(sigma), scheduler.timesteps.double(), rtol=1e-5)
    assert (schedule.t_min, schedule.T) == (scheduler.config.sigma_min, scheduler.config.sigma_max)


def test_trigflow_of_diffusers() -> None:
    scheduler = STOCK["scm"]()
    scheduler.set_timesteps(2)
    schedule = from_scheduler(scheduler)
    assert schedule.alpha(scheduler.timesteps).tolist() == pytest.approx([0.0, math.cos(1.3), 1.0], abs=1e-7)
    assert float(schedule.alpha(1.57080)) == 0  # where diffusers starts, just beyond pi/2
    assert schedule.level(schedule.T).rho == math.inf


def test_cogvideox_divides_the_signal_to_noise_ratio_by_three() -> None:
    plain, shifted = from_scheduler(STOCK["ddim"]()), from_scheduler(STOCK["cogvideox-ddim"]())
    k = torch.arange(1000)
    assert torch.allclose(shifted.snr(k) * 3, plain.snr(k), rtol=1e-3)


def test_between_nodes_it_is_what_sigma_to_t_inverts() -> None:
    import diffusers

    schedule = stable_diffusion_schedule()
    scheduler = diffusers.EulerDiscreteScheduler(**SD)
    log_rhos = schedule.log_rhos.numpy()
    k = torch.linspace(0.0, 999.0, 123, dtype=torch.float64)
    inverted = [float(scheduler._sigma_to_t(np.array(rho), log_rhos)) for rho in schedule.rho(k).tolist()]
    assert torch.allclose(torch.tensor(inverted, dtype=torch.float64), k, atol=1e-7)
    log_rho = -schedule.lam(torch.tensor([500.0, 500.25, 500.5, 501.0]))
    assert torch.allclose((log_rho - log_rho[0]) / (log_rho[3] - log_rho[0]), torch.tensor([0, 0.25, 0.5, 1]).double())


def test_a_scheduler_without_gaussian_noise_is_refused() -> None:
    import diffusers

    with pytest.raises(UsageError, match="VQDiffusionScheduler has no Gaussian noise schedule"):
        from_scheduler(diffusers.VQDiffusionScheduler(num_vec_classes=4))


# -- against themselves ------------------------------------------------------------------------------------------------


def test_derivatives_are_those_of_autograd(schedule: NoiseSchedule) -> None:
    t = inside(schedule).requires_grad_()

    def slope(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value.sum(), t, allow_unused=True)[0] if value.requires_grad else torch.zeros_like(t)

    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    for ours, theirs in (
        (schedule.dalpha(t), slope(alpha)),
        (schedule.dsigma(t), slope(sigma)),
        (schedule.dlam(t), slope(schedule.lam(t))),
        (schedule.f(t), slope(schedule.alpha(t).log())),
    ):
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-12)
    # g^2 = d(sigma^2)/dt - 2 f sigma^2
    g2 = slope(schedule.sigma(t) ** 2) - 2 * schedule.f(t) * schedule.sigma(t) ** 2
    assert torch.allclose(schedule.g2(t), g2, rtol=1e-7, atol=1e-12)
    assert bool((schedule.g2(t) > 0).all())


def test_derivatives_are_those_of_finite_differences(schedule: NoiseSchedule) -> None:
    t, h = inside(schedule), 1e-6 * (schedule.T - schedule.t_min)
    for value, derivative in (
        (schedule.alpha, schedule.dalpha),
        (schedule.sigma, schedule.dsigma),
        (schedule.lam, schedule.dlam),
    ):
        error = (value(t + h) - value(t - h)) / (2 * h) - derivative(t)
        assert float((error.abs() / (1 + derivative(t).abs())).max()) < 1e-5


def test_gradients_flow_at_the_nodes_of_a_table_too() -> None:
    schedule = stable_diffusion_schedule()
    t = torch.tensor([0.0, 1.0, 500.0, 998.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule.lam(t).sum(), t)
    assert torch.allclose(slope, schedule.dlam(t))
    assert bool((slope < 0).all())


def test_inverse_maps(schedule: NoiseSchedule) -> None:
    t = inside(schedule)
    scale = schedule.T - schedule.t_min
    assert float((schedule.t_of_lam(schedule.lam(t)) - t).abs().max()) < 1e-9 * scale
    assert float((schedule.t_of_rho(schedule.rho(t)) - t).abs().max()) < 1e-9 * scale
    lam = schedule.lam(t).requires_grad_()
    (slope,) = torch.autograd.grad(schedule.t_of_lam(lam).sum(), lam)
    assert torch.allclose(slope * schedule.dlam(t), torch.ones_like(t), rtol=1e-8)


def test_relations_between_the_maps(schedule: NoiseSchedule) -> None:
    t = inside(schedule)
    assert torch.allclose(schedule.lam(t), -schedule.rho(t).log(), rtol=1e-12)
    assert torch.allclose(schedule.snr(t), torch.exp(2 * schedule.lam(t)), rtol=1e-12)
    assert bool((schedule.lam(t).diff() < 0).all())
    assert schedule.lam_min < float(schedule.lam(t).min()) and float(schedule.lam(t).max()) < schedule.lam_max
    if not isinstance(schedule, (VarianceExploding, RectifiedFlow)):
        power = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
        assert torch.allclose(power, torch.ones_like(power), atol=1e-14)


@given(share=st.floats(0.002, 0.998), name=st.sampled_from(sorted(SCHEDULES)))
def test_levels_round_trip_through_rho(share: float, name: str) -> None:
    schedule = SCHEDULES[name]()
    level = schedule.level(schedule.t_min + share * (schedule.T - schedule.t_min))
    again = schedule.level_of_rho(level.rho)
    assert again.alpha == pytest.approx(level.alpha, rel=1e-9)
    assert again.sigma == pytest.approx(level.sigma, rel=1e-9)
    assert again.time == pytest.approx(level.time, rel=1e-6, abs=1e-6)
    assert level.lam == pytest.approx(-math.log(level.rho), abs=1e-12)


@given(t=st.floats(0.001, 0.999), s=st.floats(0.1, 10))
def test_flow_shift_translates_lam(t: float, s: float) -> None:
    schedule = RectifiedFlow()
    moved = float(schedule.lam(flow_shift(t, s)))
    assert moved == pytest.approx(float(schedule.lam(t)) - math.log(s), abs=1e-9)
    assert float(flow_shift(flow_shift(t, s), 1 / s)) == pytest.approx(t, rel=1e-9)


def test_continuous_cosine_has_the_betas_of_the_table() -> None:
    table, smooth = from_scheduler(STOCK["ddim-cosine"]()), CosineVP()
    k = torch.arange(0, 990, 10)  # later ones are clipped at beta = 0.999, and 1000 of them end at t = 1
    assert torch.allclose(table.alpha(k), smooth.alpha((k + 1) / 1000), rtol=2e-5)
    tiny = torch.tensor([1e-12, 1e-8, 1e-4], dtype=torch.float64)
    first_order = (2 * torch.tan(smooth._first) * tiny * math.pi / 2 / 1.008).sqrt()
    assert torch.allclose(smooth.sigma(tiny[:2]), first_order[:2], rtol=1e-5)  # no cancellation near t = 0


def test_shifts_of_flow_models_are_those_of_diffusers() -> None:
    import diffusers

    t = np.linspace(0.02, 1, 9)
    for kind in ("exponential", "linear"):
        stock = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
        assert np.allclose(flow_shift(t, shift_of_mu(0.8, kind)), stock.time_shift(0.8, 1.0, t), rtol=1e-12)
    stock = diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1)
    falling = torch.linspace(1, 0.02, 9, dtype=torch.float64)
    assert torch.allclose(stretch_to_terminal(falling, 0.1), stock.stretch_shift_to_terminal(falling), rtol=1e-12)
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for tokens in (256, 1024, 4096, 6000):
        assert mu_of_tokens(tokens) == pytest.approx(calculate_shift(tokens), rel=1e-12)
    with pytest.raises(UsageError, match="known: exponential, linear"):
        shift_of_mu(1.0, "cubic")


def test_a_narrowed_schedule_has_other_ends_and_nothing_else(schedule: NoiseSchedule) -> None:
    t = inside(schedule)
    narrow = Between(schedule, float(t[3]), float(t[30]))
    assert torch.equal(narrow.lam(t), schedule.lam(t)) and torch.allclose(narrow.dsigma(t), schedule.dsigma(t))
    assert (narrow.lam_min, narrow.lam_max) == (float(schedule.lam(t)[30]), float(schedule.lam(t)[3]))
    assert narrow.clean == schedule.clean and narrow.levels(t) == schedule.levels(t)


# -- ends --------------------------------------------------------------------------------------------------------------


def test_zero_terminal_snr() -> None:
    schedule = zero_snr()
    top = schedule.level(999)
    assert (top.alpha, top.sigma, top.rho, top.lam) == (0.0, 1.0, math.inf, -math.inf)
    assert float(schedule.t_of_lam(-math.inf)) == 999
    below = schedule.level(998.999)
    assert 0 < below.alpha < 1e-3 and 4000 < below.rho < 4096
    # between the last finite node and pure noise every rho has its own time
    rhos = torch.linspace(300, 4000, 9, dtype=torch.float64)
    assert torch.allclose(schedule.rho(schedule.t_of_rho(rhos)), rhos, rtol=1e-9)
    t = torch.tensor([999.0, 500.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((schedule.alpha(t) + schedule.sigma(t)).sum(), t)
    assert bool(slope.isfinite().all())


def test_rho_beyond_a_table_keeps_its_noise_and_clips_its_time() -> None:
    schedule = stable_diffusion_schedule()
    for rho, time in ((20.0, 999.0), (0.001, 0.0)):
        level = schedule.level_of_rho(rho)
        assert level.rho == pytest.approx(rho, rel=1e-12)
        assert level.time == time
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1, rel=1e-12)


def test_clean_is_clean(schedule: NoiseSchedule) -> None:
    assert schedule.level_of_rho(0) == schedule.clean
    assert (schedule.clean.alpha, schedule.clean.sigma, schedule.clean.lam) == (1, 0, math.inf)


def test_levels_are_plain_numbers(schedule: NoiseSchedule) -> None:
    levels = schedule.levels([schedule.t_min, schedule.T])
    assert all(type(v) is float for level in levels for v in (level.time, level.alpha, level.sigma))
    assert levels == (schedule.level(schedule.t_min), schedule.level(schedule.T))
    assert isinstance(levels[0], Level)


def test_any_shape_any_dtype(schedule: NoiseSchedule) -> None:
    t = inside(schedule, 6).reshape(2, 3)
    for value in (schedule.alpha(t), schedule.lam(t.float()), schedule.g2(t), schedule.t_of_rho(schedule.rho(t))):
        assert value.shape == (2, 3) and value.dtype == torch.float64


def test_a_tables_own_scheduler_is_reproduced_in_float64() -> None:
    from pilotage.samplers import DDIM

    for name in ("ddim", "ddim-linear", "ddim-cosine", "ddpm-sigmoid", "cogvideox-ddim", "ddim-zero-snr"):
        stock: Any = STOCK[name]()
        ours = DDIM.from_config(stock.config)
        assert torch.allclose(ours.alphas_cumprod, stock.alphas_cumprod.double(), rtol=2e-5, atol=1e-9), name
        assert isinstance(ours.schedule, DiscreteVP)
