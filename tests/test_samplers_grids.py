"""Grids are those of diffusers, strictly decreasing, on every schedule."""

from __future__ import annotations

import diffusers as D
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stock_schedulers import DDIM, SD
from test_samplers_schedule import SCHEDULES

from pilotage.errors import UsageError
from pilotage.samplers import GRIDS, make_grid
from pilotage.samplers.schedule import DiscreteVP, RectifiedFlow, flow_shift, stable_diffusion_schedule

EULER = dict(SD, steps_offset=1)


def stock(cls: type, steps: int, **config: object) -> tuple[list[float], list[float]]:
    """Times and rhos of a stock scheduler, both without the final 0."""
    scheduler = cls(**config)
    scheduler.set_timesteps(steps)
    sigmas = getattr(scheduler, "sigmas", None)
    return scheduler.timesteps.tolist(), [] if sigmas is None else sigmas.tolist()[:-1]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_strictly_decreasing_and_of_the_right_length(name: str, grid: str) -> None:
    schedule = SCHEDULES[name]()
    for steps in range(1, 61):
        levels = make_grid(grid, schedule, steps)
        rhos = [l.rho for l in levels]
        assert len(levels) == steps + 1
        assert all(a > b for a, b in zip(rhos, rhos[1:])), (steps, rhos)
        assert levels[-1] == schedule.clean
        assert 0 <= levels[0].alpha < 1.0 + (name == "edm")
        if grid not in ("leading", "flow"):
            noisiest = schedule.level(schedule.T).rho
            assert rhos[0] == noisiest or rhos[0] == pytest.approx(min(noisiest, 4096), rel=1e-7)


@pytest.mark.parametrize("steps", range(1, 61))
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_spacings_are_those_of_ddim(spacing: str, steps: int) -> None:
    times, _ = stock(D.DDIMScheduler, steps, **DDIM, timestep_spacing=spacing)
    levels = make_grid(spacing, stable_diffusion_schedule(), steps)
    assert [l.time for l in levels[:-1]] == times


@pytest.mark.parametrize("steps", [2, 7, 20, 50])
def test_linspace_keeps_fractions_as_the_euler_family_does(steps: int) -> None:
    times, rhos = stock(D.EulerDiscreteScheduler, steps, **SD)
    levels = make_grid("linspace", stable_diffusion_schedule(), steps)[:-1]
    assert np.allclose([l.time for l in levels], times, rtol=1e-6)
    assert np.allclose([l.rho for l in levels], rhos, rtol=1e-4)  # stock interpolates rho, not log rho, between nodes
    assert stock(D.EulerDiscreteScheduler, 1, **SD)[0] == [0]  # the stock quirk that is not copied
    assert make_grid("linspace", stable_diffusion_schedule(), 1)[0].time == 999


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50])
@pytest.mark.parametrize(("grid", "flag"), [("karras", "use_karras_sigmas"), ("exponential", "use_exponential_sigmas")])
def test_karras_and_exponential(grid: str, flag: str, steps: int) -> None:
    spacing = {"timestep_spacing": "linspace" if steps > 1 else "trailing"}  # linspace 1 would begin at clean data
    times, rhos = stock(D.EulerDiscreteScheduler, steps, **SD, **{flag: True}, **spacing)
    levels = make_grid(grid, stable_diffusion_schedule(), steps)[:-1]
    assert np.allclose([l.rho for l in levels], rhos, rtol=2e-5)
    assert np.allclose([l.time for l in levels], times, atol=2e-2)


def test_karras_with_zero_terminal_snr_starts_where_diffusers_does() -> None:
    settings = dict(SD, rescale_betas_zero_snr=True, timestep_spacing="trailing", use_karras_sigmas=True)
    scheduler = D.DPMSolverMultistepScheduler(**settings)
    scheduler.set_timesteps(12)
    ours = make_grid("karras", SCHEDULES["zero-snr"](), 12)
    assert ours[0].rho == pytest.approx(4096, rel=1e-6) and ours[0].time == 999
    assert np.allclose([l.rho for l in ours[:-1]], scheduler.sigmas[:-1], rtol=1e-4)


def test_exponential_is_uniform_in_lam_and_lu() -> None:
    lams = np.array([l.lam for l in make_grid("lambda-uniform", stable_diffusion_schedule(), 13)[:-1]])
    assert np.allclose(np.diff(lams), np.diff(lams)[0], rtol=1e-9)
    scheduler = D.DPMSolverMultistepScheduler(**SD, use_lu_lambdas=True)
    scheduler.set_timesteps(13)
    assert np.allclose(np.exp(-lams), scheduler.sigmas[:-1], rtol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_flow_is_that_of_the_flux_pipeline(steps: int, shift: float) -> None:
    scheduler = D.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
    levels = make_grid("flow", RectifiedFlow(), steps, shift=shift)
    assert np.allclose([l.sigma for l in levels], scheduler.sigmas, atol=1e-6)
    assert np.allclose([l.time for l in levels[:-1]], scheduler.timesteps, atol=1e-3)


def test_flow_match_euler_shifts_its_small_end_twice_and_we_do_not() -> None:
    scheduler = D.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(28)
    assert float(scheduler.sigmas[-2]) == pytest.approx(0.008929, abs=1e-6)
    assert float(flow_shift(1 / 1000, 3.0)) == pytest.approx(0.002994, abs=1e-6)


def test_flow_on_a_vp_schedule_visits_the_rhos_of_rectified_flow() -> None:
    schedule = stable_diffusion_schedule()
    levels = make_grid("flow", schedule, 10, shift=3.0)[:-1]
    t = torch.tensor([l.rho / (1 + l.rho) for l in levels], dtype=torch.float64)
    steps = flow_shift(t, 1 / 3).diff()
    assert torch.allclose(steps, steps[0].expand(9), rtol=1e-9)
    assert levels[0].rho == pytest.approx(float(schedule.rho(999)), rel=1e-9)


@given(steps=st.integers(1, 60), shift=st.floats(0.2, 8), grid=st.sampled_from(sorted(GRIDS)))
def test_levels_lie_on_their_schedule(steps: int, shift: float, grid: str) -> None:
    for schedule in (stable_diffusion_schedule(), RectifiedFlow()):
        for level in make_grid(grid, schedule, steps, **({"shift": shift} if grid == "flow" else {}))[:-1]:
            if isinstance(schedule, DiscreteVP):
                assert level.alpha**2 + level.sigma**2 == pytest.approx(1, rel=1e-12)
                if level.rho < 14.6:
                    assert level.rho == pytest.approx(float(schedule.rho(level.time)), rel=1e-6)
            else:
                assert level.alpha + level.sigma == pytest.approx(1, rel=1e-12)
                assert level.time == pytest.approx(1000 * level.sigma, rel=1e-9)


def test_bad_grids_are_refused() -> None:
    schedule = stable_diffusion_schedule()
    with pytest.raises(UsageError, match="did you mean karras"):
        make_grid("karas", schedule, 4)
    with pytest.raises(UsageError, match="at least 1"):
        make_grid("karras", schedule, 0)
    with pytest.raises(UsageError, match="the trailing grid has no 2000 different levels"):
        make_grid("trailing", schedule, 2000)


def test_a_grid_may_be_levels_or_a_function() -> None:
    schedule = stable_diffusion_schedule()
    levels = make_grid("karras", schedule, 3)
    assert make_grid(levels, schedule, 99) is levels
    assert make_grid(lambda s, n: make_grid("karras", s, n), schedule, 3) == levels
