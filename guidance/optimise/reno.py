"""ReNO: Eyring et al. 2024, arXiv 2406.04312. The noise of a one-step model, by gradient ascent on rewards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .driver import Descent, lengths, norm_penalty, refuse_negative
from .problem import Problem


@dataclass(frozen=True)
class ReNO(Descent):
    """Nesterov's method on loss + regulariser (|z|^2 / 2 - (d - 1) ln |z|), z the unit noise.

    Defaults are those of the paper's code: rate 5 (10 on Hyper-SD), momentum 0.9, each row's gradient no longer than
    clip (0 does not clip), 50 iterations, regulariser 0.01; its loss is a weighted sum of rewards (`losses.Together`).
    Meant for problems of one or a few steps.
    """

    rate: float = 5.0
    momentum: float = 0.9
    clip: float = 0.1
    regulariser: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_negative("reno", rate=self.rate, momentum=self.momentum, clip=self.clip, regulariser=self.regulariser)

    def penalty(self, problem: Problem) -> Callable[[Tensor], Tensor] | None:
        return norm_penalty(self.regulariser, problem)

    def move(self, at: Tensor, gradient: Tensor, kept: Any, first: Tensor) -> tuple[Tensor, Any]:
        if self.clip:
            gradient = gradient * (self.clip / lengths(gradient).clamp(min=self.clip))
        velocity = gradient if kept is None else self.momentum * kept + gradient
        return at - self.rate * (gradient + self.momentum * velocity), velocity
