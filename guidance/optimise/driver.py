"""What the optimisers share: the loop, the best run so far of each row, and the penalty on the norm of noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from .problem import Look, Problem, column

Told = Callable[[int, Tensor], None]  # iteration, losses (B,)


@dataclass(frozen=True, eq=False)
class Optimised:
    """The best run of each row.

    noise: where it began (B, ...). controls: (B, steps, ...) where there are any. sample: its end (B, ...). picture:
    the end decoded, where the problem can. loss: of that end, (B,). history: what each iteration was judged by, the
    plain run first, (iterations + 1, B), shorter where no row moved any more: the loss with DOODL and ReNO, which keep
    the best picture; the loss and the penalty with D-Flow and FlowGrad, which minimise their sum. runs: how often the
    whole batch was sampled.
    """

    noise: Tensor
    sample: Tensor
    loss: Tensor
    history: Tensor
    runs: int
    controls: Tensor | None = None
    picture: Tensor | None = None

    @property
    def best_so_far(self) -> Tensor:
        """The lowest number until each iteration, in the shape of `history`."""
        return self.history.cummin(0).values


@dataclass
class Best:
    """Collects looks; keeps of each row the one with the lowest number: the look's loss, or its value. One that is not
    finite is never the best."""

    by: str = "loss"
    at: Tensor | None = None
    look: Look | None = None
    history: list[Tensor] = field(default_factory=list)

    def take(self, at: Tensor, look: Look) -> None:
        number: Tensor = getattr(look, self.by)
        self.history.append(number)
        if self.at is None or self.look is None:
            self.at, self.look = at.detach().clone(), look
            return
        before: Tensor = getattr(self.look, self.by)
        better = (number < before) | (before.isnan() & ~number.isnan())
        self.at = torch.where(column(better, at), at.detach(), self.at)
        self.look = look.where(better, self.look)

    def result(self, problem: Problem, noise: Tensor | None, runs: int) -> Optimised:
        """noise: where every run began, if what was optimised are controls."""
        assert self.at is not None and self.look is not None
        picture = None
        if problem.decode is not None:
            with torch.no_grad():
                picture = problem.decode(self.look.sample)
        found = Optimised(self.at, self.look.sample, self.look.loss, torch.stack(self.history), runs, picture=picture)
        return found if noise is None else replace(found, noise=noise, controls=self.at)


@dataclass(frozen=True)
class Optimiser(ABC):
    """Frozen settings; the rows of a batch are optimised side by side and never see each other. iterations: 0 is the
    plain run."""

    iterations: int = 50

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.iterations != int(self.iterations):
            raise UsageError(f"iterations={self.iterations} must be a whole number from 0 on")

    @abstractmethod
    def optimise(self, problem: Problem, x: Tensor, told: Told | None = None) -> Optimised:
        """x: (B, ...) at the first level of the problem's grid. told(i, losses (B,)) after each iteration."""


@dataclass(frozen=True)
class Descent(Optimiser):
    """One gradient, one move."""

    def optimise(self, problem: Problem, x: Tensor, told: Told | None = None) -> Optimised:
        at, best, kept = x.detach(), Best(), None
        for i in range(self.iterations + 1):
            last = i == self.iterations
            look = problem.look(at, problem.run, self.penalty(problem), grad=not last)
            best.take(at, look)
            if told is not None:
                told(i, look.loss)
            if look.gradient is not None:
                at, kept = self.move(at, look.gradient, kept, x)
        return best.result(problem, None, self.iterations + 1)

    def penalty(self, problem: Problem) -> Callable[[Tensor], Tensor] | None:
        """Added to the loss, (B,)."""
        return None

    @abstractmethod
    def move(self, at: Tensor, gradient: Tensor, kept: Any, first: Tensor) -> tuple[Tensor, Any]:
        """Where to look next, and what to keep (None at first). first: where it all began."""


def norm_penalty(weight: float, problem: Problem) -> Callable[[Tensor], Tensor] | None:
    """weight (|z|^2 / 2 - (d - 1) ln |z|), (B,), of the unit noise z = x / sigma with d entries: minus the logarithm of
    the density of its norm. Lowest at |z|^2 = d - 1 (ReNO: Eyring et al. 2024, arXiv 2406.04312; D-Flow: Ben-Hamu et
    al. 2024, arXiv 2402.14017)."""
    if weight == 0:
        return None
    sigma = problem.levels[0].sigma

    def penalty(x: Tensor) -> Tensor:
        flat = x.flatten(1) / sigma
        flat = flat if flat.dtype == torch.float64 else flat.float()
        square = flat.square().sum(1)
        return weight * (square / 2 - (flat.shape[1] - 1) * square.log() / 2)

    return penalty


def lengths(x: Tensor) -> Tensor:
    """The norm of each row, shaped to broadcast."""
    return column(x.flatten(1).norm(dim=1), x)


def refuse_negative(who: str, **settings: float) -> None:
    for name, value in settings.items():
        if not value >= 0:
            raise UsageError(f"{who} {name}={value} must not be negative")
