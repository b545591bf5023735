"""Reading a diffusers scheduler: at which level each network call of a run stands.

Ask the scheduler, never invert the timestep. After `set_timesteps` the sequence of network calls is known; `calls_of`
lists it once per run, so that nothing is read from the device between steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .schedule import Level, NoiseSchedule, from_scheduler, is_flow

# Schedulers whose pipelines keep x / alpha rather than x; the network still sees x.
_KEEPS_SCALED = (
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "HeunDiscrete",
    "KDPM2",
    "LMSDiscrete",
    "DPMSolverSDE",
)


@dataclass(frozen=True)
class Call:
    """One network call of a run.

    level: where the network is evaluated. goal: where the scheduler's step after it arrives. step: outer step.
    stage: 0 starts an outer step. last: whether the outer step ends with this call's `scheduler.step`.
    """

    level: Level
    goal: Level
    step: int
    stage: int
    last: bool


def keeps_scaled(scheduler: Any) -> bool:
    """Is the pipeline's state x / alpha (the Euler family on VP models)?"""
    name = type(scheduler).__name__
    return name.startswith(_KEEPS_SCALED) and not is_flow(scheduler)


def calls_of(scheduler: Any) -> list[Call]:
    """The network calls that `scheduler.timesteps` stands for, in order."""
    schedule = from_scheduler(scheduler)
    if hasattr(scheduler, "calls"):  # our own
        points = [
            (scheduler.levels[step + stage], scheduler.levels[step + 1], stage) for step, stage in scheduler.calls
        ]
    elif getattr(scheduler, "sigmas", None) is not None:
        points = _from_sigmas(scheduler, schedule)
    elif type(scheduler).__name__ == "SCMScheduler":
        times = [float(t) for t in scheduler.timesteps]
        levels = [schedule.level(t) for t in times]
        points = [(a, b, 0) for a, b in zip(levels, levels[1:], strict=False)]
    else:
        points = _from_table(scheduler)
    return _numbered(points)


def _numbered(points: list[tuple[Level, Level, int]]) -> list[Call]:
    calls, step = [], -1
    for i, (level, goal, stage) in enumerate(points):
        step += stage == 0
        last = i + 1 == len(points) or points[i + 1][2] == 0
        calls.append(Call(level, goal, step, stage, last))
    return calls


def _from_sigmas(scheduler: Any, schedule: NoiseSchedule) -> list[tuple[Level, Level, int]]:
    """`sigmas` holds rho, or t on the flow path, with the target as its last entry. Two-stage schedulers repeat their
    entries: [s0, s1, s1, s2, s2, ..., 0], and evaluate the second stage at the repeated (or interpolated) one."""
    flow, scaled = (
        is_flow(scheduler),
        type(scheduler).__name__.startswith(("EDM", "CosineDPM", "CMStoch", "ScoreSde")),
    )
    times = [float(t) for t in scheduler.timesteps.tolist()]

    def at(sigma: float, time: float) -> Level:
        if flow:
            inverted = bool(scheduler.config.get("invert_sigmas"))
            return Level(time, sigma if inverted else 1 - sigma, 1 - sigma if inverted else sigma)
        alpha = 1.0 if scaled else (1 + sigma**2) ** -0.5
        return Level(time, alpha, alpha * sigma)

    sigmas = [float(s) for s in scheduler.sigmas.tolist()]
    inner = [float(s) for s in getattr(scheduler, "sigmas_interpol", scheduler.sigmas).tolist()]
    two_stage = hasattr(type(scheduler), "state_in_first_order")
    points = []
    for i, time in enumerate(times):
        second = two_stage and i % 2 == 1
        level = at(inner[i] if second else sigmas[i], time)
        points.append((level, at(sigmas[i if second else i + 1], 0.0), int(second)))
    return points


def _from_table(scheduler: Any) -> list[tuple[Level, Level, int]]:
    """DDIM, DDPM, PNDM, LCM, TCD: the level is alphas_cumprod[t]; where a step goes differs by class."""
    name = type(scheduler).__name__
    table = scheduler.alphas_cumprod.double()
    times = [int(t) for t in scheduler.timesteps.tolist()]
    final = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps

    def at(t: int) -> Level:
        power = float(table[t]) if t >= 0 else final
        return Level(float(t), power**0.5, (1 - power) ** 0.5)

    points = []
    for i, t in enumerate(times):
        stage = 0
        if name.startswith(("LCM", "TCD", "DDPM")):
            before = times[i + 1] if i + 1 < len(times) else -1
        elif name.startswith("PNDM"):
            stage, before = _pndm(scheduler, i, t, stride)
        else:  # DDIM steps by the stride, not to the next entry of the list
            before = t - stride
        points.append((at(t), at(before), stage))
    return points


def _pndm(scheduler: Any, i: int, t: int, stride: int) -> tuple[int, int]:
    """PNDM repeats its second entry (skip_prk_steps), or starts with three Runge-Kutta steps of four calls each."""
    warm = 0 if scheduler.config.skip_prk_steps else len(scheduler.prk_timesteps)
    if i < warm:
        return i % 4, int(scheduler.prk_timesteps[i // 4 * 4]) - stride
    if scheduler.config.skip_prk_steps and i == 1:
        return 1, t
    return 0, t - stride
