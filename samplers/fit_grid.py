"""Grids that are fitted to a model, a sampler and a number of steps.

    target = sample(denoiser, x, grid="exponential", steps=200)                # the fine solution, from the same starts
    fit = fit_grid(lambda levels: sample(denoiser, x, grid=levels), target, denoiser.schedule, 8)
    FittedGrid("my model", "dpmpp-2m", "cfg:scale=3", fit.rhos).save("grid.json")   # or pilotage fit-grid
    sample(denoiser, x, grid="fitted:file=grid.json", steps=8)

With lam = log(alpha / sigma), the levels that N steps visit are

    lam_i = lam_0 + (lam_end - lam_0) (p_1 + ... + p_i),  i = 1 .. N - 1,    p = softmax(theta_1, ..., theta_{N-1}, 0)

and the loss is the mean over rows of |x_end - target|, so that no few rows rule. N - 1 unknowns against all entries of
x_end is least squares: Levenberg and Marquardt's steps on Jacobians by differences of whole runs. So the gradient holds
all that a level decides, the model's own time and the rule's windows with it; nothing has to be differentiable, and any
deterministic sampler will do. An iteration costs about N + 1 runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..documents import plain_json
from ..errors import UsageError
from ..storage import write_text
from .sampler import Levels
from .schedule import Level, NoiseSchedule

Runs = Callable[[Levels], Tensor]  # levels -> x at the end of a run along them, (B, ...)
_STEP = 0.01  # of theta, for differences
_LEAST = 0.02  # a share of the even increment: starts have no smaller one


@dataclass(frozen=True)
class FittedGrid:
    """What was fitted, and for what: names of the model, the sampler's line and the rule's ("" where it does not
    matter), and the noise levels rho that the steps visit, (N,), falling; the first may be infinite. before, after:
    the loss of the grid that was begun with, and of this one, on runs that were not fitted where there were any."""

    model: str
    sampler: str
    rule: str
    rhos: tuple[float, ...]
    before: float = 0.0
    after: float = 0.0

    @property
    def steps(self) -> int:
        return len(self.rhos)

    def save(self, path: str | Path) -> None:
        """As JSON; every number reads back to the same bits."""
        content = {**asdict(self), "rhos": [r if math.isfinite(r) else "inf" for r in self.rhos]}
        write_text(Path(path), json.dumps(content, indent=1, allow_nan=False) + "\n")

    @staticmethod
    def load(path: str | Path) -> FittedGrid:
        try:
            content = plain_json(Path(path).read_text(encoding="utf-8"))
            made = FittedGrid(**{**content, "rhos": tuple(map(float, content["rhos"]))})
        except OSError as error:
            raise UsageError(f"cannot read the fitted grid {path}: {error.strerror}") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UsageError(f"{path} holds no fitted grid; write one with pilotage fit-grid") from None
        if not made.rhos or any(not b < a for a, b in zip(made.rhos, (*made.rhos[1:], 0.0))):
            raise UsageError(f"{path} is damaged: its noise levels do not fall; fit it again")
        return made


def fitted(schedule: NoiseSchedule, steps: int, file: str) -> Levels:
    """The levels in `file`. UsageError for another number of steps, or a model of another range of noise."""
    fit = loaded(file)
    if fit.steps != steps:
        raise UsageError(
            f"{file} was fitted for {fit.steps} steps, not {steps}; fit it again, or take --steps {fit.steps}"
        )
    most = float(schedule.rho(schedule.T))
    if fit.rhos[0] != most and not math.isclose(fit.rhos[0], most, rel_tol=1e-3):
        raise UsageError(f"{file} was fitted on a schedule that begins at rho = {fit.rhos[0]:.4g}, not {most:.4g}")
    return (*schedule.levels_of_rho(fit.rhos), schedule.clean)


def loaded(path: str) -> FittedGrid:
    """The grid in a file, read anew when it has been written anew."""
    file = Path(path)
    return _read(path, file.stat().st_mtime_ns if file.is_file() else 0)


@lru_cache(maxsize=16)
def _read(path: str, written: int) -> FittedGrid:
    return FittedGrid.load(path)


# -- fitting -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """levels: the best that were found. history: the loss after each iteration, the start's first. runs: how often the
    batch was sampled."""

    levels: Levels
    history: tuple[float, ...]
    runs: int

    @property
    def rhos(self) -> tuple[float, ...]:
        return tuple(level.rho for level in self.levels[:-1])


@dataclass(frozen=True)
class _Unknowns:
    """theta <-> levels, with both ends fixed. first: the first level; start: its lam, or where that is infinite what
    the next two levels continue to."""

    schedule: NoiseSchedule
    first: Level
    start: float
    end: float

    def theta(self, levels: Levels) -> Tensor:
        lams = [self.start, *(level.lam for level in levels[1:-1]), self.end]
        steps = torch.tensor(lams, dtype=torch.float64).diff()
        shares = (steps / (self.end - self.start)).clamp(min=_LEAST / len(steps))
        return (shares.log() - shares[-1].log())[:-1]

    def levels(self, theta: Tensor) -> Levels:
        shares = torch.softmax(torch.cat([theta, theta.new_zeros(1)]), 0).cumsum(0)[:-1]
        rhos = torch.exp(-(self.start + (self.end - self.start) * shares)).tolist()
        return (self.first, *self.schedule.levels_of_rho(rhos), self.schedule.clean)


def fit_grid(
    run: Runs,
    target: Tensor,
    schedule: NoiseSchedule,
    begin: Levels,
    *,
    iterations: int = 10,
    tolerance: float = 1e-3,
    told: Callable[[int, float], None] | None = None,
) -> Fit:
    """Fit the levels between the first one and clean data.

    run: samples the whole batch along the levels it is given, always from the same starts. target: (B, ...), where the
    fine solution ends. begin: the grid to begin with, of at least 2 steps; never made worse. tolerance: stop when an
    iteration gains less than this share. told(iteration, loss).
    """
    if len(begin) < 3:
        raise UsageError("there is nothing to fit in a grid of one step; take 2 or more")
    start = begin[0].lam if math.isfinite(begin[0].lam) else -math.log(_first_finite(begin))
    unknowns = _Unknowns(schedule, begin[0], start, schedule.lam_max)
    theta, best, runs = unknowns.theta(begin), begin, 2
    found = error(run(begin), target)
    moved = residuals(run(unknowns.levels(theta)), target)
    damping, history = 1e-2, [found]
    for iteration in range(iterations):
        if told is not None:
            told(iteration, history[-1])
        at = float(row_sizes(moved).mean())
        jacobian, runs = _jacobian(run, unknowns, theta, moved, target), runs + len(theta)
        for _ in range(6):
            step = _step(jacobian, moved, damping)
            levels = unknowns.levels(theta + step)
            tried, runs = residuals(run(levels), target), runs + 1
            loss = float(row_sizes(tried).mean())
            if loss < at:
                break
            damping *= 4
        else:
            break
        theta, moved, damping = theta + step, tried, damping / 4
        if loss < history[-1]:
            best = levels
        history.append(min(loss, history[-1]))
        if loss > at * (1 - tolerance):
            break
    return Fit(best, tuple(history), runs)


def _first_finite(begin: Levels) -> float:
    """The rho from which lam counts in a grid from pure noise: as far above its second level as that is above the
    third."""
    second, third = begin[1], begin[2]
    return second.rho * (second.rho / third.rho if third.rho > 0 else 10.0)


def residuals(x: Tensor, target: Tensor) -> Tensor:
    """(B, S) in float64, scaled so that a row's norm is the root mean square of its error."""
    flat = (x.double() - target.double()).flatten(1).cpu()
    return flat / math.sqrt(flat.shape[1])


def row_sizes(moved: Tensor) -> Tensor:
    return moved.norm(dim=1)


def error(x: Tensor, target: Tensor) -> float:
    """The loss: the mean over rows of the root mean square difference. x, target: (B, ...)."""
    return float(row_sizes(residuals(x, target)).mean())


def _jacobian(run: Runs, unknowns: _Unknowns, theta: Tensor, moved: Tensor, target: Tensor) -> Tensor:
    """(B, S, N - 1)."""
    columns = []
    for k in range(len(theta)):
        near = theta.clone()
        near[k] += _STEP
        columns.append((residuals(run(unknowns.levels(near)), target) - moved) / _STEP)
    return torch.stack(columns, dim=-1)


def _step(jacobian: Tensor, moved: Tensor, damping: float) -> Tensor:
    """Levenberg-Marquardt on rows weighted by 1 / |row|, which makes squares into the mean of norms; at most 1 in any
    coordinate."""
    sizes = row_sizes(moved)
    weights = 1 / (sizes + 1e-3 * sizes.mean() + 1e-300)
    left = torch.einsum("bsk,bsl,b->kl", jacobian, jacobian, weights)
    right = torch.einsum("bsk,bs,b->k", jacobian, moved, weights)
    scale = left.diagonal().clamp(min=1e-12 * float(left.diagonal().max()))
    step: Tensor = -torch.linalg.solve(left + damping * torch.diag(scale), right)
    return step / max(1.0, float(step.abs().max()))


def best_of(run: Runs, target: Tensor, candidates: Sequence[Levels]) -> tuple[Levels, float]:
    """The grid with the lowest loss, to begin with, and that loss."""
    losses = [error(run(levels), target) for levels in candidates]
    place = min(range(len(losses)), key=losses.__getitem__)
    return candidates[place], losses[place]
