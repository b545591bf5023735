"""What may follow a grid in its line, after " + ": karras:p=5 + ends:low=0.03,high=10 + shift:by=3.

A wrapper is a function of (inner, schedule, steps, settings) and returns levels; `inner(schedule, steps)` is all that
stands before it. N steps stay N steps with `ends`, `shift` and `stretch`; `clip` and `skip` leave steps out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import UsageError
from ..registry import Spec
from .sampler import Levels
from .schedule import Between, NoiseSchedule, flow_shift

Grid = Callable[[NoiseSchedule, int], Levels]


def ends(
    inner: Grid, schedule: NoiseSchedule, steps: int, low: float | None = None, high: float | None = None
) -> Levels:
    """The grid made anew on noise levels rho from `high` down to `low`, as k-diffusion's sigma_max and sigma_min; None
    leaves an end where it is. UsageError beyond the schedule's range, or for a grid that brings its own levels."""
    least, most = (float(schedule.rho(t)) for t in (schedule.t_min, schedule.T))
    bottom, top = least if low is None else low, most if high is None else high
    if not least * (1 - 1e-6) <= bottom < top <= most * (1 + 1e-6):
        raise UsageError(f"ends needs low < high within {least:.4g} to {most:.4g}, this model's range of rho")
    times = [float(schedule.t_of_rho(rho)) for rho in (bottom, top)]
    levels = inner(Between(schedule, *times), steps)
    if levels == inner(schedule, steps) and (bottom > least * (1 + 1e-6) or top < most * (1 - 1e-6)):
        raise UsageError("ends has no effect on a grid that brings its own levels; use clip instead")
    return levels


def shift(inner: Grid, schedule: NoiseSchedule, steps: int, by: float = 3.0) -> Levels:
    """Flow shift of any grid: with t = rho / (1 + rho) and its first value T, t / T -> s t / (T + (s - 1) t). From pure
    noise, T = 1, that is lam -> lam - log s exactly; elsewhere the first level stays and small rho grow by s. by: above
    0, 1 is off."""
    if by <= 0:
        raise UsageError(f"shift:by={by} must be above 0; 1 is no shift")
    levels = inner(schedule, steps)
    t = _flow_times(levels)
    return _moved(levels, t[0] * flow_shift(t / t[0], by), schedule)


def stretch(inner: Grid, schedule: NoiseSchedule, steps: int, terminal: float = 0.1) -> Levels:
    """t = rho / (1 + rho) stretched so that the last step starts at t = `terminal` and the first stays: from pure
    noise, 1 - (1 - t) (1 - terminal) / (1 - t_last) (diffusers' shift_terminal). terminal: above 0, below the first
    t."""
    levels = inner(schedule, steps)
    t = _flow_times(levels)
    if not 0 < terminal < float(t[0]):
        raise UsageError(
            f"stretch:terminal={terminal} must lie between 0 and {float(t[0]):.3g}, where this grid starts"
        )
    if len(t) == 1:
        return levels
    return _moved(levels, t[0] - (t[0] - t) * (t[0] - terminal) / (t[0] - t[-1]), schedule)


def clip(inner: Grid, schedule: NoiseSchedule, steps: int, low: float = 0.0, high: float = math.inf) -> Levels:
    """Only the levels with low <= rho <= high, and the end: fewer steps. x must then begin at the first level left: see
    `teleport`, or start from a picture."""
    levels = inner(schedule, steps)
    left = tuple(level for level in levels[:-1] if low <= level.rho <= high)
    if not left:
        raise UsageError(f"clip leaves no level between {low} and {high}; this grid has {_range(levels)}")
    return (*left, levels[-1])


def skip(inner: Grid, schedule: NoiseSchedule, steps: int, first: int = 1) -> Levels:
    """Without the first levels: fewer steps. x must then begin at the first level left, as with `clip`."""
    levels = inner(schedule, steps)
    if not 0 <= first < len(levels) - 1 or first != int(first):
        raise UsageError(f"skip:first={first} must be a whole number from 0 to {len(levels) - 2}")
    return levels[int(first) :]


WRAPPERS: dict[str, Spec] = {
    "ends": Spec(ends, "made anew from rho = high down to low; as many steps", off={"low": None, "high": None}),
    "shift": Spec(shift, "more of the steps at high noise, as the shift of flow models", off={"by": 1.0}),
    "stretch": Spec(stretch, "stretched so that the last step starts at rho / (1 + rho) = terminal"),
    "clip": Spec(clip, "only the levels with low <= rho <= high; fewer steps", off={"low": 0.0, "high": math.inf}),
    "skip": Spec(skip, "without the first levels; fewer steps", off={"first": 0}),
}


def _flow_times(levels: Levels) -> Tensor:
    """sigma / (alpha + sigma) = rho / (1 + rho) of all levels but the last; 1 is pure noise."""
    return torch.tensor([level.sigma / (level.alpha + level.sigma) for level in levels[:-1]], dtype=torch.float64)


def _moved(levels: Levels, t: Tensor, schedule: NoiseSchedule) -> Levels:
    """The levels with these flow times. The first stays what it was, to the bit, where it did not move."""
    found = schedule.levels_of_rho(t / (1 - t))
    first = levels[0] if math.isclose(float(t[0]), float(_flow_times(levels)[0]), rel_tol=1e-12) else found[0]
    return (first, *found[1:], levels[-1])


def _range(levels: Levels) -> str:
    return f"{levels[-2].rho:.3g} to {levels[0].rho:.3g}"


def decreasing(levels: Levels) -> bool:
    return all(b.rho < a.rho for a, b in pairwise(levels))
