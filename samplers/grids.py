"""Grids: which levels a run visits. A grid of N steps has N + 1 levels, noisiest first; the last is the target.

Each function takes a schedule and a number of steps and returns levels in float64. The names and rules are those of
diffusers, so that a grid of ours can be compared with a stock one. Three stock quirks are not copied: DDIM steps to
t - K // N even where that is not the next time of its list, FlowMatchEuler shifts its smallest level twice, and
"linspace" with one step starts at clean data.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..errors import UsageError, nearest
from ..grammar import name_and_settings
from ..registry import Spec, lookup
from .schedule import NEARLY_PURE, DiscreteVP, Level, NoiseSchedule, RectifiedFlow, flow_shift

Levels = tuple[Level, ...]


def from_times(schedule: NoiseSchedule, times: Any) -> Levels:
    """The grid that visits these times and ends at clean data."""
    return (*schedule.levels(times), schedule.clean)


def from_rhos(schedule: NoiseSchedule, rhos: Any) -> Levels:
    """The grid that visits these noise levels (all above 0) and ends at clean data."""
    return (*schedule.levels_of_rho(rhos), schedule.clean)


def _line(first: float, last: float, count: int) -> torch.Tensor:
    return torch.linspace(first, last, count, dtype=torch.float64)


def _ends(schedule: NoiseSchedule) -> tuple[float, float]:
    """Largest and smallest finite rho of the schedule."""
    largest = float(schedule.rho(schedule.T))
    if math.isinf(largest):  # pure noise has no finite rho
        largest = math.sqrt(1 / NEARLY_PURE - 1)
    return largest, float(schedule.rho(schedule.t_min))


def linspace(schedule: NoiseSchedule, steps: int) -> Levels:
    """Equal distances in time, both ends visited; fractional times are kept (diffusers' Euler family)."""
    return from_times(schedule, _line(schedule.T, schedule.t_min, steps))


def leading(schedule: NoiseSchedule, steps: int, offset: int = 1) -> Levels:
    """Every (K // N)-th index, shifted by `offset`; never visits the noisiest one (the Stable Diffusion default)."""
    if not isinstance(schedule, DiscreteVP):
        return from_times(schedule, _line(schedule.T, schedule.t_min, steps + 1)[1:])
    count = int(schedule.T) + 1
    times = torch.arange(steps - 1, -1, -1) * (count // steps) + offset
    return from_times(schedule, times.clamp(max=count - 1).double())


def trailing(schedule: NoiseSchedule, steps: int) -> Levels:
    """From the noisiest index down in equal distances (Lin et al. 2023, arXiv 2305.08891, Table 2)."""
    if not isinstance(schedule, DiscreteVP):
        return from_times(schedule, _line(schedule.T, schedule.t_min, steps + 1)[:-1])
    count = int(schedule.T) + 1
    return from_times(schedule, np.arange(count, 0, -count / steps).round()[:steps] - 1)  # rounds as diffusers does


def karras(schedule: NoiseSchedule, steps: int, p: float = 7.0) -> Levels:
    """rho^(1/p) linear (Karras et al. 2022, arXiv 2206.00364, eq. 5)."""
    largest, smallest = _ends(schedule)
    return from_rhos(schedule, _line(largest ** (1 / p), smallest ** (1 / p), steps) ** p)


def exponential(schedule: NoiseSchedule, steps: int) -> Levels:
    """log rho linear: equal steps in lam."""
    largest, smallest = _ends(schedule)
    return from_rhos(schedule, _line(math.log(largest), math.log(smallest), steps).exp())


def flow(schedule: NoiseSchedule, steps: int, shift: float = 1.0) -> Levels:
    """t = 1 .. 1/N, shifted: the grid of rectified-flow models. On other schedules t = rho / (1 + rho), from their
    noisiest level down."""
    if isinstance(schedule, RectifiedFlow):
        return from_times(schedule, flow_shift(_line(1.0, 1.0 / steps, steps), shift))
    first, last = (float(flow_shift(rho / (1 + rho), 1 / shift)) for rho in _ends(schedule))
    times = flow_shift(_line(first, max(first / steps, last), steps), shift)
    return from_rhos(schedule, times / (1 - times))


GRIDS: dict[str, Spec] = {
    "linspace": Spec(linspace, "equal distances in time, both ends visited"),
    "leading": Spec(leading, "every (K // N)-th index; the Stable Diffusion default"),
    "trailing": Spec(
        trailing,
        "from the noisiest index down; needed for few steps and zero terminal SNR",
        "Lin et al. 2023, 2305.08891",
    ),
    "karras": Spec(karras, "rho^(1/p) linear; dense at low noise", "Karras et al. 2022, 2206.00364"),
    "exponential": Spec(exponential, "log rho linear"),
    "lambda-uniform": Spec(exponential, "the same as exponential: equal steps of half log-SNR"),
    "flow": Spec(flow, "t = 1 .. 1/N with a shift, for rectified flow", "Esser et al. 2024, 2403.03206"),
}


def make_grid(
    grid: str | Levels | Callable[..., Levels], schedule: NoiseSchedule, steps: int, **settings: Any
) -> Levels:
    """Levels of a grid given by name, with settings here or in the line ("karras:p=5"), by function, or as levels."""
    if isinstance(grid, tuple):
        return grid
    if steps < 1:
        raise UsageError(f"steps must be at least 1, not {steps}")
    if isinstance(grid, str):
        name, make, settings = check_grid(grid, **settings)
    else:
        make, name = grid, getattr(grid, "__name__", "this")
    levels = make(schedule, steps, **settings)
    if any(b.rho >= a.rho for a, b in zip(levels, levels[1:], strict=False)):
        raise UsageError(f"the {name} grid has no {steps} different levels on this schedule; use fewer steps")
    return levels


def check_grid(line: str, **settings: Any) -> tuple[str, Callable[..., Levels], dict[str, Any]]:
    """Name, function and settings of a grid in words. Raises UsageError for unknown ones."""
    name, written = name_and_settings(line)
    make = lookup("grids", GRIDS, name, "grid").load()
    settings = {**written, **settings}
    known = [*inspect.signature(make).parameters][2:]  # after the schedule and the steps
    for key in settings:
        if key not in known:
            what = nearest(key, known) if known else "it has none"
            raise UsageError(f"the {name} grid has no setting {key!r}: {what}")
    return name, make, settings
