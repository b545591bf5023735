"""Reading a diffusers scheduler: at which level each network call of a run stands.

Ask the scheduler, never invert the timestep. After `set_timesteps` the sequence of network calls is known; `calls_of`
lists it once per run, so that nothing is read from the device between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .sampler import Leg
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


Point = tuple[Level, Level, int]  # level, goal, stage


@dataclass(frozen=True)
class Call:
    """One network call of a run.

    level: where the network is evaluated. goal: where the outer step ends. step: number of the outer step.
    stage: 0 starts an outer step. last: whether the outer step ends with this call's `scheduler.step`.
    end: where x stands after it: the goal, or above it where the scheduler lifts x again. shift: what an inconsistent
    prediction's (denoised - base.denoised) counts in x there, alpha of the goal; 0 for a corrector, which goes nowhere.
    """

    level: Level
    goal: Level
    step: int
    stage: int
    last: bool
    end: Level
    shift: float


def keeps_scaled(scheduler: Any) -> bool:
    """Is the pipeline's state x / alpha (the Euler family on VP models)?"""
    name = type(scheduler).__name__
    return name.startswith(_KEEPS_SCALED) and not is_flow(scheduler)


def calls_of(scheduler: Any) -> list[Call]:
    """The network calls that `scheduler.timesteps` stands for, in order."""
    schedule = from_scheduler(scheduler)
    if hasattr(scheduler, "legs"):
        return _own(scheduler.legs)
    if getattr(scheduler, "sigmas", None) is not None:
        points = _from_sigmas(scheduler, schedule)
    elif type(scheduler).__name__ == "SCMScheduler":
        levels = schedule.levels(scheduler.timesteps)
        points = [(a, b, 0) for a, b in zip(levels, levels[1:], strict=False)]
    else:
        points = _from_table(scheduler)
    return _numbered(points)


def _own(legs: Sequence[Leg]) -> list[Call]:
    """Of our own schedulers, whose legs say where x goes."""
    calls = []
    for step, leg in enumerate(legs):
        end = legs[step + 1].level if step + 1 < len(legs) else leg.goal
        shift = 0.0 if leg.level == leg.goal else end.alpha  # alpha' of the goal, times what a lift keeps of x
        for stage, level in enumerate(leg.points):
            calls.append(Call(level, leg.goal, step, stage, stage + 1 == len(leg.points), end, shift))
    return calls


def _numbered(points: list[Point]) -> list[Call]:
    calls, step = [], -1
    for i, (level, goal, stage) in enumerate(points):
        step += stage == 0
        last = i + 1 == len(points) or points[i + 1][2] == 0
        calls.append(Call(level, goal, step, stage, last, goal, goal.alpha))
    return calls


def _from_sigmas(scheduler: Any, schedule: NoiseSchedule) -> list[Point]:
    """`sigmas` holds rho, or t on the flow path, with the target as its last entry. Two-stage schedulers repeat their
    entries: [s0, s1, s1, s2, s2, ..., 0], and evaluate the second stage at the repeated one or at one between."""
    name = type(scheduler).__name__
    unit_signal = name.startswith(("EDM", "CosineDPM", "CMStoch", "ScoreSde"))
    inverted = bool(scheduler.config.get("invert_sigmas"))
    flow = is_flow(scheduler)

    def at(sigma: float, time: float) -> Level:
        if flow:
            return Level(time, sigma, 1 - sigma) if inverted else Level(time, 1 - sigma, sigma)
        alpha = 1.0 if unit_signal else (1 + sigma**2) ** -0.5
        return Level(time, alpha, alpha * sigma)

    times, sigmas = scheduler.timesteps.tolist(), scheduler.sigmas.tolist()
    sigmas += [0.0] * (len(times) + 1 - len(sigmas))  # ScoreSdeVe lists no target
    ends = [*times[1:], schedule.clean.time]
    if not hasattr(type(scheduler), "state_in_first_order"):
        return [(at(sigmas[i], t), at(sigmas[i + 1], ends[i]), 0) for i, t in enumerate(times)]
    points = []
    for i, time in enumerate(times):
        start = i - i % 2
        goal = at(sigmas[start + 1], ends[min(start + 1, len(times) - 1)])
        inner = sigmas[i] if i == start else _inner_sigma(scheduler, sigmas, i)
        points.append((at(inner, time), goal, i - start))
    return points


def _inner_sigma(scheduler: Any, sigmas: list[float], i: int) -> float:
    """rho of the second stage of a step from sigmas[i - 1] to sigmas[i]."""
    if hasattr(scheduler, "sigmas_interpol"):
        ancestral = "Ancestral" in type(scheduler).__name__  # its list is shifted by one
        return float(scheduler.sigmas_interpol[i - ancestral])
    if hasattr(scheduler, "mid_point_sigma"):  # DPMSolverSDE: halfway in log rho
        return (sigmas[i - 1] * sigmas[i]) ** 0.5
    return sigmas[i]


def _from_table(scheduler: Any) -> list[Point]:
    """DDIM, DDPM, PNDM, LCM, TCD: the level is alphas_cumprod[t]; where a step goes differs by class."""
    name = type(scheduler).__name__
    table = scheduler.alphas_cumprod.double().tolist()
    times = [int(t) for t in scheduler.timesteps.tolist()]
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    # alpha^2 beyond the clean end of the table; LCM and DDPM end at clean data whatever their config says
    end = getattr(scheduler, "final_alpha_cumprod", getattr(scheduler, "initial_alpha_cumprod", 1.0))
    end = 1.0 if name.startswith(("LCM", "DDPM", "UnCLIP")) else float(end)

    def at(t: int, time: float | None = None) -> Level:
        power = table[min(t, len(table) - 1)] if t >= 0 else end
        return Level(float(max(t, 0) if time is None else time), power**0.5, (1 - power) ** 0.5)

    if name.startswith("DDIMInverse"):  # rises: x stands one stride below the time that the network is told
        return [(at(t - stride, t), at(t), 0) for t in times]
    if name.startswith("PNDM"):
        pairs = zip(times, _pndm(scheduler, times, stride), strict=True)
        return [(at(t), at(goal), stage) for t, (stage, goal) in pairs]
    if name.startswith(("LCM", "TCD", "DDPM", "UnCLIP")):
        final = 0 if name.startswith("TCD") else -1  # TCD stops at the first entry of the table
        return [(at(a), at(b), 0) for a, b in zip(times, [*times[1:], final], strict=True)]
    return [(at(t), at(t - stride), 0) for t in times]  # DDIM steps by the stride, not to the next entry of the list


def _pndm(scheduler: Any, times: list[int], stride: int) -> list[tuple[int, int]]:
    """(stage, time of the goal). PNDM repeats its second entry (skip_prk_steps), or starts with three Runge-Kutta steps
    of four calls each."""
    if scheduler.config.skip_prk_steps:
        return [(1, t) if i == 1 else (0, t - stride) for i, t in enumerate(times)]
    warm = len(scheduler.prk_timesteps)
    starts = [times[i // 4 * 4] for i in range(warm)]
    return [(i % 4, t - stride) for i, t in enumerate(starts)] + [(0, t - stride) for t in times[warm:]]
