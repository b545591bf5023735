"""Grids: which levels a run visits. A grid of N steps has N + 1 levels, noisiest first; the last is the target.

A grid is written as a name with settings, and what wraps it (`grid_wrappers`): "karras:p=5 + ends:low=0.03,high=10".

Each function takes a schedule and a number of steps and returns levels in float64. The names and rules are those of
diffusers, so that a grid of ours can be compared with a stock one. Three stock quirks are not copied: DDIM steps to
t - K // N even where that is not the next time of its list, FlowMatchEuler shifts its smallest level twice, and
"linspace" with one step starts at clean data.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from ..errors import UsageError, nearest
from ..grammar import name_and_settings, pieces_of
from ..kinds import check_kinds
from ..registry import Spec, check_settings, everything, lookup
from .align_your_steps import TABLES, aligned_rhos
from .grid_wrappers import WRAPPERS, Grid, decreasing
from .incomplete_beta import beta_quantile
from .sampler import Levels
from .schedule import NEARLY_PURE, DiscreteVP, NoiseSchedule, RectifiedFlow, flow_shift, shift_of_mu


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
    return polyexponential(schedule, steps, p=1.0)


def polyexponential(schedule: NoiseSchedule, steps: int, p: float = 1.0) -> Levels:
    """log rho = log rho_min + (1 - i / (N - 1))^p (log rho_max - log rho_min): p above 1 is denser at low noise, 1 is
    exponential (k-diffusion's get_sigmas_polyexponential)."""
    largest, smallest = map(math.log, _ends(schedule))
    return from_rhos(schedule, (smallest + _line(1.0, 0.0, steps) ** p * (largest - smallest)).exp())


def beta(schedule: NoiseSchedule, steps: int, a: float = 0.6, b: float = 0.6) -> Levels:
    """rho = rho_min + (rho_max - rho_min) Q(1 - i / (N - 1)) with Q the quantile function of Beta(a, b): dense at both
    ends (Lee et al. 2024, arXiv 2407.12173, as diffusers has it; other programs apply Q to the times)."""
    largest, smallest = _ends(schedule)
    shares = [beta_quantile(share, a, b) for share in _line(1.0, 0.0, steps).tolist()]
    return from_rhos(schedule, [smallest + (largest - smallest) * share for share in shares])


def quadratic(schedule: NoiseSchedule, steps: int) -> Levels:
    """Times (i / N)^2 of the way from the cleanest to the noisiest, i = N .. 1 (Song et al. 2020, arXiv 2010.02502)."""
    shares = _line(1.0, 1.0 / steps, steps) ** 2
    return from_times(schedule, schedule.t_min + shares * (schedule.T - schedule.t_min))


def ays(schedule: NoiseSchedule, steps: int, model: str) -> Levels:
    """Align Your Steps: levels optimised for `model`, one of sd1.5, sdxl, svd; other than 10 steps by log-linear
    interpolation (Sabour et al. 2024, arXiv 2404.14507). The model must be named: sd1.5 and sdxl have one schedule and
    different grids. UsageError on a schedule that does not reach the table's first level."""
    if model not in TABLES:
        raise UsageError(f"the ays grid knows no model {model!r}: {nearest(str(model), TABLES)}")
    rhos = aligned_rhos(model, steps)
    if rhos[0] > _ends(schedule)[0] * 1.001:
        raise UsageError(f"the ays grid of {model} begins at rho = {rhos[0]:.4g}, beyond this schedule's levels")
    return from_rhos(schedule, rhos)


def flow(schedule: NoiseSchedule, steps: int, shift: float | None = None, mu: float | None = None) -> Levels:
    """t = 1 .. 1/N, shifted by `shift` or by e^mu: the grid of rectified-flow models. On other schedules
    t = rho / (1 + rho), from their noisiest level down."""
    if shift is not None and mu is not None:
        raise UsageError("the flow grid takes shift= or mu=, not both; shift is e^mu")
    s = shift_of_mu(mu) if mu is not None else 1.0 if shift is None else shift
    if isinstance(schedule, RectifiedFlow):
        return from_times(schedule, flow_shift(_line(1.0, 1.0 / steps, steps), s))
    first, last = (float(flow_shift(rho / (1 + rho), 1 / s)) for rho in _ends(schedule))
    times = flow_shift(_line(first, max(first / steps, last), steps), s)
    return from_rhos(schedule, times / (1 - times))


def ucgm(
    schedule: NoiseSchedule,
    steps: int,
    a: float = 1.17,
    b: float = 0.8,
    c: float = 1.1,
    first: float = 0.001,
    last: float = 0.001,
) -> Levels:
    """t = 1 - (1 - (1 - s^a)^b)^c for s even from `first` to 1 - `last`; with last = 0, which would be clean data
    itself, that point is one more and left out (Sun et al. 2025, arXiv 2505.07447). On other schedules than rectified
    flow t goes over their range of rho / (1 + rho)."""
    if min(a, b, c) <= 0 or not (first >= 0 and last >= 0 and first + last < 1):
        raise UsageError("the ucgm grid needs a, b, c above 0 and first, last at least 0 with a sum below 1")
    s = _line(first, 1 - last, steps) if last else _line(first, 1.0, steps + 1)[:-1]
    times = 1 - (1 - (1 - s**a) ** b) ** c
    if isinstance(schedule, RectifiedFlow):
        return from_times(schedule, times)
    top, bottom = (rho / (1 + rho) for rho in _ends(schedule))
    times = bottom + (top - bottom) * times
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
    "polyexponential": Spec(
        polyexponential, "exponential with a power: p above 1 is denser at low noise", "k-diffusion"
    ),
    "beta": Spec(beta, "quantiles of a beta distribution in rho; dense at both ends", "Lee et al. 2024, 2407.12173"),
    "quadratic": Spec(quadratic, "times (i / N)^2; dense at low noise", "Song et al. 2020, 2010.02502"),
    "ays": Spec(
        ays, "Align Your Steps: optimised for model=sd1.5, sdxl or svd; for few steps", "Sabour et al. 2024, 2404.14507"
    ),
    "fitted": Spec(
        "samplers.fit_grid:fitted",
        "fitted to your model by pilotage fit-grid: file=grid.json",
        "see samplers/fit_grid.py",
    ),
    "ucgm": Spec(ucgm, "Kumaraswamy-warped times, with gaps at both ends", "Sun et al. 2025, 2505.07447"),
    "flow": Spec(flow, "t = 1 .. 1/N with a shift, for rectified flow", "Esser et al. 2024, 2403.03206"),
}


def make_grid(grid: str | Levels | Grid, schedule: NoiseSchedule, steps: int, **settings: Any) -> Levels:
    """Levels of a grid given by its line, with settings of its first piece here or in the line ("karras:p=5 +
    shift:by=3"), by function, or as levels. UsageError for unknown names and settings, and where the schedule has not
    so many different levels."""
    if isinstance(grid, tuple):
        return grid
    if steps < 1:
        raise UsageError(f"steps must be at least 1, not {steps}")
    make = parse_grid(grid, **settings) if isinstance(grid, str) else partial(grid, **settings)
    name = grid if isinstance(grid, str) else getattr(grid, "__name__", "this")
    levels = make(schedule, steps)
    if not decreasing(levels):
        raise UsageError(f"the {name} grid has no {steps} different levels on this schedule; use fewer steps")
    return levels


def parse_grid(line: str, **settings: Any) -> Grid:
    """The function of (schedule, steps) that a line stands for. settings: of its first piece, over those in the line.
    Raises UsageError for unknown names and settings, before any level is made."""
    first, *rest = pieces_of(line)
    if name_and_settings(first)[0] in WRAPPERS:
        raise UsageError(f"{first.partition(':')[0]} goes around a grid: write for example karras + {first}")
    grid = _bound("grids", GRIDS, first, settings)
    for piece in rest:
        if name_and_settings(piece)[0] in everything("grids", GRIDS):
            raise UsageError(f"{line!r} has two grids; the first piece names the grid, the others what goes around it")
        grid = partial(_bound("grid_wrappers", WRAPPERS, piece, {}), grid)
    return grid


def is_plain(line: str | None, name: str) -> bool:
    """Is this the line of the grid `name` with no settings of its own? Wrappers may follow."""
    return line is not None and name_and_settings(pieces_of(line)[0]) == (name, {})


def _bound(group: str, known: dict[str, Spec], piece: str, more: dict[str, Any]) -> Callable[..., Levels]:
    """The function of a piece with its settings filled in."""
    name, written = name_and_settings(piece)
    spec, settings = lookup(group, known, name, "grid" if group == "grids" else "grid wrapper"), {**written, **more}
    make = spec.load()
    given = 2 if group == "grids" else 3  # (schedule, steps), or (inner, schedule, steps)
    takes = dict([*inspect.signature(make).parameters.items()][given:])
    check_settings(f"the {name} grid", settings, takes)
    check_kinds(f"the {name} grid", written, make)
    for key, parameter in takes.items():
        if parameter.default is parameter.empty and key not in settings:
            raise UsageError(f"the {name} grid needs a setting {key}=; see pilotage list grids")
    return partial(make, **settings)
