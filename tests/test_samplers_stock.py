"""`calls_of` says where every network call of a stock scheduler stands, and `predicted_by` what the network means.

The probe: data that are one point. Its exact network, told the level that `calls_of` claims, keeps the state on
x = alpha x_0 + sigma n, so that the weight of x_0 in what the network is given *is* alpha, and the size of the rest
*is* sigma. A wrong level, goal, stage, unit of the state or prediction type leaves that path.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from stock_schedulers import SCALED, STOCK
from torch import Tensor

from pilotage.samplers.prediction import Parameterization, Prediction, predicted_by
from pilotage.samplers.schedule import Level
from pilotage.samplers.stock import calls_of, keeps_scaled

NOISE = 20_000  # components of the noise: its size is known to 0.5 %
DATA = torch.cat([torch.ones(1), torch.zeros(NOISE)])[None]
TWO_STAGES = ("heun", "heun-v-trailing", "kdpm2", "kdpm2-ancestral", "dpm-sde", "flow-heun")


def measured(x: Tensor) -> tuple[float, float]:
    """alpha and sigma of x."""
    return float(x[0, 0]), float(x[0, 1:].double().square().mean().sqrt())


def assert_at(x: Tensor, level: Level, tolerance: float, what: str) -> None:
    alpha, sigma = measured(x)
    assert abs(alpha - level.alpha) < 1e-4 * max(1, level.rho), f"{what}: alpha {alpha}, not {level.alpha}"
    assert abs(sigma - level.sigma) < tolerance * max(level.sigma, 0.01), f"{what}: sigma {sigma}, not {level.sigma}"


def network(kind: Parameterization, x: Tensor, level: Level) -> Tensor:
    """The raw output of the network whose denoised value is DATA."""
    return Prediction(x, level, torch.zeros_like(x), kind).with_denoised(DATA).native


def prepared(name: str, steps: int) -> Any:
    scheduler = STOCK[name]()
    scheduler.set_timesteps(2 if name == "scm" else steps)
    if name == "score-sde-ve":
        scheduler.set_sigmas(steps)
    return scheduler


def stepped(scheduler: Any, output: Tensor, t: Any, state: Tensor, memory: dict[str, Any]) -> Tensor:
    if hasattr(scheduler, "step_pred"):
        return scheduler.step_pred(output, t, state).prev_sample
    if type(scheduler).__name__ == "CogVideoXDPMScheduler":
        before = memory.get("time")
        x, memory["x0"] = scheduler.step(output, memory.get("x0"), t, before, state, return_dict=False)
        memory["time"] = t
        return x
    return scheduler.step(output, t, state, return_dict=False)[0]


def without_first(randn: Any) -> Any:
    """torch.randn whose first component is zero: fresh noise does not blur the weight of the data."""

    def draw(*size: Any, **settings: Any) -> Tensor:
        values = randn(*size, **settings)
        values[..., 0] = 0
        return values

    return draw


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde, about float32 ends of its interval
@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize("name", STOCK)
def test_calls_stand_where_the_scheduler_puts_them(name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(steps)
    monkeypatch.setattr(torch, "randn", without_first(torch.randn))
    scheduler = prepared(name, steps)
    kind, calls, scaled = predicted_by(scheduler), calls_of(scheduler), keeps_scaled(scheduler)
    assert scaled == (name in SCALED)
    if name == "score-sde-ve":
        pytest.skip("predictor and corrector share a call; its levels are tested below")
    times = scheduler.timesteps.tolist()[: len(calls)]
    noise = torch.cat([torch.zeros(1), torch.randn(NOISE)])[None]
    noise /= noise.square().sum().sqrt() / math.sqrt(NOISE)

    first, memory = calls[0].level, {}
    state = first.alpha * DATA + first.sigma * noise
    state = state / first.alpha if scaled else state
    for i, (call, t) in enumerate(zip(calls, scheduler.timesteps, strict=False)):
        assert call.level.time == pytest.approx(times[i], rel=1e-6)
        if name == "ddim-linspace":  # it goes by T // N, and is then told another time than it stands at
            state = call.level.alpha * DATA + call.level.sigma * noise
        seen = scheduler.scale_model_input(state, t) if hasattr(scheduler, "scale_model_input") else state
        if kind.name.startswith("edm"):
            seen = seen * math.hypot(call.level.sigma, scheduler.config.sigma_data)
        assert_at(seen, call.level, 0.03, f"call {i}")
        state = stepped(scheduler, network(kind, seen, call.level), t, state, memory)
        if call.last:
            x = state * call.goal.alpha if scaled else state
            wanted = call.goal
            if name == "consistency":  # stops at sigma_min with data, and adds only what is above it
                wanted = Level(0.0, 1.0, math.sqrt(wanted.sigma**2 - scheduler.config.sigma_min**2))
            assert_at(x, wanted, 0.03, f"goal of call {i}")


@pytest.mark.parametrize("name", STOCK)
def test_steps_are_numbered_and_goals_are_the_next_levels(name: str) -> None:
    calls = calls_of(prepared(name, 6))
    starts = [c for c in calls if c.stage == 0]
    assert [c.step for c in starts] == list(range(len(starts)))
    assert all(c.last == (i + 1 == len(calls) or calls[i + 1].stage == 0) for i, c in enumerate(calls))
    assert max(c.stage for c in calls) == (1 if name in (*TWO_STAGES, "pndm") else 3 if "runge" in name else 0)
    off_the_list = name.startswith(("ddim", "cogvideox", "pndm"))  # they step by T // N instead
    for call in calls:
        following = [c for c in starts if c.step == call.step + 1]
        if following and not off_the_list:
            assert (call.goal.alpha, call.goal.sigma) == (following[0].level.alpha, following[0].level.sigma)
            assert call.goal.time == pytest.approx(following[0].level.time)


def test_stepping_by_the_stride_is_not_stepping_to_the_next_time() -> None:
    scheduler = STOCK["ddim-trailing"]()
    scheduler.set_timesteps(30)
    assert scheduler.timesteps.tolist()[:4] == [999, 966, 932, 899]
    assert [c.goal.time for c in calls_of(scheduler)[:3]] == [966, 933, 899]


def test_score_sde_levels_are_the_sigmas_that_the_network_is_told() -> None:
    scheduler = prepared("score-sde-ve", 10)
    calls = calls_of(scheduler)
    rhos = [c.level.rho for c in calls]
    assert rhos == pytest.approx(scheduler.sigmas.tolist())
    assert rhos == pytest.approx(scheduler.discrete_sigmas.flip(0).tolist(), rel=1e-3)
    assert calls[-1].goal.sigma == 0
