"""Grids are those of diffusers, strictly decreasing, on every schedule."""

from __future__ import annotations

import math

import diffusers as D
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from stock_schedulers import DDIM, SD
from test_samplers_schedule import SCHEDULES

from pilotage import samplers
from pilotage.errors import UsageError
from pilotage.samplers import GRIDS, make_grid
from pilotage.samplers.incomplete_beta import beta_quantile, incomplete_beta
from pilotage.samplers.schedule import (
    DiscreteVP,
    RectifiedFlow,
    VarianceExploding,
    flow_shift,
    stable_diffusion_schedule,
)

EULER = dict(SD, steps_offset=1)
PLAIN = [
    name for name, spec in GRIDS.items() if ... not in list(spec.defaults.values())[2:]
]  # those that need no setting
WRAPPED = [
    "karras:p=5 + shift:by=3",
    "exponential + stretch:terminal=0.1",
    "beta + ends:low=0.05,high=10",
    "trailing + ends:high=5 + shift:by=0.5 + stretch:terminal=0.08",
]


def stock(cls: type, steps: int, **config: object) -> tuple[list[float], list[float]]:
    """Times and rhos of a stock scheduler, both without the final 0."""
    scheduler = cls(**config)
    scheduler.set_timesteps(steps)
    sigmas = getattr(scheduler, "sigmas", None)
    return scheduler.timesteps.tolist(), [] if sigmas is None else sigmas.tolist()[:-1]


@pytest.mark.parametrize("grid", [*PLAIN, *WRAPPED])
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
        if grid not in ("leading", "flow", "ucgm") and "ends" not in grid:
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


@given(steps=st.integers(1, 60), shift=st.floats(0.2, 8), grid=st.sampled_from(sorted(PLAIN)))
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


# -- the further grids -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 1.0), (2.0, 3.5), (0.05, 0.4)])
def test_the_quantiles_of_the_beta_distribution_are_scipys(a: float, b: float) -> None:
    for share in np.linspace(0, 1, 41):
        assert beta_quantile(float(share), a, b) == pytest.approx(scipy.stats.beta.ppf(share, a, b), rel=2e-12, abs=0)
    for x in np.linspace(0, 1, 41):
        assert incomplete_beta(float(x), a, b) == pytest.approx(scipy.stats.beta.cdf(x, a, b), rel=2e-13, abs=0)
    with pytest.raises(UsageError, match="above 0"):
        beta_quantile(0.5, 0.0, 1.0)


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50])
def test_beta_is_that_of_diffusers(steps: int) -> None:
    spacing = {"timestep_spacing": "linspace" if steps > 1 else "trailing"}
    _, rhos = stock(D.EulerDiscreteScheduler, steps, **SD, use_beta_sigmas=True, **spacing)
    levels = make_grid("beta", stable_diffusion_schedule(), steps)[:-1]
    assert np.allclose([l.rho for l in levels], rhos, rtol=2e-5)


def test_polyexponential_and_quadratic_by_their_formulas() -> None:
    schedule = stable_diffusion_schedule()
    top, bottom = float(schedule.rho(999)), float(schedule.rho(0))
    ramp = np.linspace(1, 0, 9) ** 1.7
    expected = np.exp(ramp * (np.log(top) - np.log(bottom)) + np.log(bottom))
    assert np.allclose([l.rho for l in make_grid("polyexponential:p=1.7", schedule, 9)[:-1]], expected, rtol=1e-12)
    times = [l.time for l in make_grid("quadratic", schedule, 10)[:-1]]
    assert np.allclose(times, 999 * (np.arange(10, 0, -1) / 10) ** 2, rtol=1e-12)


@pytest.mark.parametrize(("model", "name"), [("sd1.5", ""), ("sdxl", "XL"), ("svd", "Video")])
def test_align_your_steps_in_ten_steps_is_the_table_of_diffusers(model: str, name: str) -> None:
    schedule = VarianceExploding(0.002, 700.0) if model == "svd" else stable_diffusion_schedule()
    levels = make_grid(f"ays:model={model}", schedule, 10)
    table = D.schedulers.AysSchedules[f"StableDiffusion{name}Sigmas"]
    assert np.allclose([l.rho for l in levels], table, rtol=1e-12)
    if model != "svd":  # the table of times belongs to it
        wanted = D.schedulers.AysSchedules[f"StableDiffusion{name}Timesteps"]
        assert np.abs(np.subtract([l.time for l in levels[:-1]], wanted)).max() < 2.0


def test_align_your_steps_in_other_numbers_of_steps() -> None:
    schedule = stable_diffusion_schedule()
    ten, twenty = (make_grid("ays:model=sdxl", schedule, n) for n in (10, 20))
    assert np.allclose([l.lam for l in twenty[:-1:2]], [l.lam for l in ten[:-1]], rtol=1e-12)  # every other one
    middles = [(a.lam + b.lam) / 2 for a, b in zip(ten[:-1], ten[1:-1])]
    assert np.allclose([l.lam for l in twenty[1:-2:2]], middles, rtol=1e-12)
    with pytest.raises(UsageError, match="needs a setting model="):
        make_grid("ays", schedule, 10)
    with pytest.raises(UsageError, match="did you mean sdxl"):
        make_grid("ays:model=sdx", schedule, 10)
    with pytest.raises(UsageError, match="begins at rho = 700"):
        make_grid("ays:model=svd", schedule, 10)


def test_flow_with_mu() -> None:
    assert make_grid("flow:mu=0", RectifiedFlow(), 5) == make_grid("flow", RectifiedFlow(), 5)
    a, b = (make_grid(f"flow:{text}", RectifiedFlow(), 5) for text in ("mu=1.1", f"shift={math.exp(1.1)!r}"))
    assert a == b
    with pytest.raises(UsageError, match="not both"):
        make_grid("flow:mu=1,shift=3", RectifiedFlow(), 5)


# -- what goes around a grid -------------------------------------------------------------------------------------------


def test_ends_is_the_karras_grid_of_k_diffusion() -> None:
    levels = make_grid("karras:p=5 + ends:low=0.1,high=10", stable_diffusion_schedule(), 12)
    expected = np.linspace(10 ** (1 / 5), 0.1 ** (1 / 5), 12) ** 5
    assert np.allclose([l.rho for l in levels[:-1]], expected, rtol=1e-9)
    same = make_grid("karras + ends", stable_diffusion_schedule(), 12)
    plain = make_grid("karras", stable_diffusion_schedule(), 12)
    assert np.allclose([l.rho for l in same], [l.rho for l in plain], rtol=1e-9)


def test_shift_translates_lam_from_pure_noise_and_keeps_the_first_level_elsewhere() -> None:
    plain, shifted = (make_grid(line, RectifiedFlow(), 9) for line in ("flow", "flow + shift:by=3"))
    assert np.allclose([l.lam for l in shifted[1:-1]], [l.lam - math.log(3) for l in plain[1:-1]], rtol=1e-12)
    assert np.allclose([l.sigma for l in shifted], [l.sigma for l in make_grid("flow:shift=3", RectifiedFlow(), 9)])
    schedule = stable_diffusion_schedule()
    plain, shifted = (make_grid(line, schedule, 9) for line in ("karras", "karras + shift:by=3"))
    assert shifted[0] == plain[0]
    assert shifted[-2].rho / plain[-2].rho == pytest.approx(3, rel=0.1)
    back = make_grid("karras + shift:by=3 + shift:by=0.3333333333333333", schedule, 9)
    assert np.allclose([l.rho for l in back], [l.rho for l in plain], rtol=1e-9)


def test_stretch_is_that_of_diffusers() -> None:
    scheduler = D.FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=0.1)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 12, 12))
    levels = make_grid("flow:shift=3 + stretch:terminal=0.1", RectifiedFlow(), 12)
    assert np.allclose([l.sigma for l in levels], scheduler.sigmas, atol=1e-6)
    other = make_grid("karras + stretch:terminal=0.1", stable_diffusion_schedule(), 12)
    assert other[-2].rho / (1 + other[-2].rho) == pytest.approx(0.1, rel=1e-12)
    assert other[0] == make_grid("karras", stable_diffusion_schedule(), 12)[0]


def test_clip_and_skip_leave_steps_out_and_the_others_as_they_are() -> None:
    schedule = stable_diffusion_schedule()
    whole = make_grid("karras", schedule, 20)
    assert make_grid("karras + skip:first=5", schedule, 20) == whole[5:]
    clipped = make_grid("karras + clip:low=0.05,high=8", schedule, 20)
    assert clipped == (*(l for l in whole[:-1] if 0.05 <= l.rho <= 8), whole[-1])
    assert 10 < len(clipped) < 20
    with pytest.raises(UsageError, match="clip leaves no level"):
        make_grid("karras + clip:low=20", schedule, 20)
    with pytest.raises(UsageError, match="whole number from 0 to 19"):
        make_grid("karras + skip:first=20", schedule, 20)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("shift:by=3", "write for example karras \\+ shift:by=3"),
        ("karras + exponential", "has two grids"),
        ("karras + strech", "unknown grid wrapper 'strech': did you mean stretch"),
        ("karras + shift:buy=3", "no setting 'buy': did you mean by"),
        ("karras + shift:by=0", "must be above 0"),
        ("karras + ends:high=100", "this model's range of rho"),
        ("karras + ends:high=1,low=2", "low < high"),
        ("ays:model=sdxl + ends:high=10", "begins at rho = 14.61, beyond"),
        ("ays:model=sdxl + ends:low=0.1", "use clip instead"),
        ("karras + stretch:terminal=1", "must lie between 0 and 0.936"),
    ],
)
def test_bad_wrappers_are_refused(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_grid(line, stable_diffusion_schedule(), 8)


def test_lines_reach_our_schedulers() -> None:
    for line in ("karras:p=5 + shift:by=2", "leading + clip:high=8"):
        ours = samplers.DPMPP2M(**SD, grid=line, steps_offset=1)
        ours.set_timesteps(10)
        assert ours.levels == make_grid(line, ours.schedule, 10)
        assert len(ours.timesteps) == len(ours.levels) - 1
    config = D.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    for line, same in (("flow + stretch:terminal=0.1",) * 2, ("flow:shift=2", "flow:shift=2")):
        ours = samplers.Euler.from_config(config, grid=line)
        ours.set_timesteps(10)
        settings = {} if "shift" in same else {"shift": 3.0}  # the model's shift, unless the line has its own
        assert ours.levels == make_grid(same, ours.schedule, 10, **settings)
